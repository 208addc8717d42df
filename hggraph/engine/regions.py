"""What it is to train and to evaluate what makes regions: a clusterer, by how well labels survive them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from hggraph.engine.segmentation import undone
from hggraph.engine.task import OptimizerMaker, SchedulerMaker, Task
from hggraph.graph import Assignment

__all__ = ["RegionTask"]


class RegionTask(Task):
    """Train and evaluate a clusterer of photos whose features are learned.

    Args:
        net: Maps images ``(B, C, H, W)`` to an `Assignment`, as a `SoftSLIC` with a `RegionEmbedding` does.
        criterion: Maps an assignment and the masks to a dict of losses, of which ``"loss"`` is minimised, as
            `hggraph.nn.RegionLoss` does.
        metric: Updated with the labels ``(H, W)`` and the mask of each image, and its colours, as
            `hggraph.metrics.RegionQuality` is.
        optimizer: See `Task`, as for all that follow.
        power: Exponent of the poly schedule.
        warmup: Steps in which the learning rate first rises.
        scheduler: Another schedule, by epoch.
        lr_factors: Factors on the learning rate by the parameters' names.

    A batch is a dict with ``"image"``, in [0, 1] and not normalised where photos are clustered, and ``"mask"``
    ``(B, H, W)``: classes or numbers of segments.

    Example:
        >>> from hggraph import SoftSLIC
        >>> from hggraph.metrics import RegionQuality
        >>> from hggraph.nn import RegionEmbedding, RegionLoss
        >>> clusterer = SoftSLIC(num_regions=4, projection=RegionEmbedding(channels=8), feature_scale="photo")
        >>> task = RegionTask(clusterer, RegionLoss(), RegionQuality())
        >>> batch = {"image": torch.rand(2, 3, 16, 16), "mask": torch.randint(3, (2, 16, 16))}
        >>> task.losses(batch)["loss"].shape
        torch.Size([])
    """

    def __init__(
        self,
        net: nn.Module,
        criterion: nn.Module,
        metric: Metric,
        optimizer: OptimizerMaker = torch.optim.AdamW,
        power: float = 0.9,
        warmup: int = 0,
        scheduler: SchedulerMaker | None = None,
        lr_factors: dict[str, float] | None = None,
    ) -> None:
        super().__init__(net, metric, optimizer, power, warmup, scheduler, lr_factors)
        self.criterion = criterion

    def forward(self, x: Tensor) -> Assignment:
        """Cluster images."""
        assignment: Assignment = self.net(x)
        return assignment

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Return what the regions lose of the masks, before they are connected: what that moves has no gradient."""
        net: Any = self.net
        connected = getattr(net, "connected", False)
        try:
            if connected:
                net.connected = False
            losses: dict[str, Tensor] = self.criterion(net(batch["image"]), batch["mask"])
        finally:
            if connected:
                net.connected = True
        return losses

    def count(self, batch: dict[str, Any]) -> None:
        """Compare regions with masks, image by image."""
        images = undone(batch["image"], batch)
        found = self.net(batch["image"]).labels
        if tuple(found.shape[1:]) != tuple(images.shape[2:]):  # numbers of regions: the nearest, not a mean
            rows, columns = (
                ((torch.arange(own, device=found.device) + 0.5) * (int(shown[0]) / own)).long()
                for shown, own in zip(batch["shown"], images.shape[2:], strict=True)
            )
            found = found[:, rows[:, None], columns]
        for one, mask, image in zip(found, batch["mask"], images, strict=True):
            self.metric.update(one, mask, image)
