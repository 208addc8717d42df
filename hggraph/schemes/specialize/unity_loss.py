"""The loss of a network that predicts unity beside its logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hggraph._check import check_positive
from hggraph.nn import BinaryCrossEntropy, OutputLoss
from hggraph.schemes.specialize.relabel import IGNORED, relabel
from hggraph.schemes.specialize.targets import unity_pyramid

__all__ = ["UnityOutputLoss"]


class UnityOutputLoss(OutputLoss):
    """The losses of a network's outputs, and of which cells have unity: for `hg_unity`.

    Args:
        losses: As `OutputLoss` takes them.
        weights: Likewise, with ``"unity"`` among them; None: 1 for unity.
        stride: Image pixels per cell and side of the finest level that has unity.
        ignore_index: The label that does not count; cells without a labelled pixel do not either.

    Raises:
        ValueError: as `OutputLoss`; in a call, if levels are missing or are not those of the target.

    Example:
        >>> from hggraph.nn import CrossEntropy
        >>> outputs = {"out": torch.rand(2, 3, 32, 32), "unity": [torch.rand(2, 1, 1), torch.rand(2, 2, 2)]}
        >>> parts = UnityOutputLoss(CrossEntropy(), stride=16)(outputs, torch.zeros(2, 32, 32, dtype=torch.long))
        >>> list(parts), bool(parts["loss"] == parts["out"] + parts["unity"])
        (['out', 'unity', 'loss'], True)
    """

    def __init__(
        self,
        losses: nn.Module | dict[str, nn.Module],
        weights: dict[str, float] | None = None,
        stride: int = 16,
        ignore_index: int = 255,
    ) -> None:
        unity_weight = 1.0 if weights is None else weights.get("unity", 1.0)
        rest = None if weights is None else {name: value for name, value in weights.items() if name != "unity"}
        super().__init__(losses, rest)
        check_positive("stride", stride)
        self.stride, self.ignore_index, self.unity_weight = stride, ignore_index, unity_weight
        self.unity_loss = BinaryCrossEntropy(IGNORED)

    def forward(self, outputs: Mapping[str, Any], target: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the loss of each output, the mean over levels for unity, and their weighted sum."""
        parts = super().forward({name: value for name, value in outputs.items() if name != "unity"}, target)
        total = parts.pop("loss")
        unity = outputs.get("unity", [])
        if len(unity):
            labels = target["out"] if isinstance(target, Mapping) else target
            parts["unity"] = self._of_unity(unity, labels)
            total = total + self.unity_weight * parts["unity"]
        elif self.training:
            raise ValueError(
                f"`outputs` must hold logits of unity under 'unity', got {list(outputs)}; networks of `hg_unity` "
                f"return them in training mode."
            )
        return parts | {"loss": total}

    def _of_unity(self, unity: list[Tensor], labels: Tensor) -> Tensor:
        strides = [self.stride * 2**level for level in reversed(range(len(unity)))]
        losses = []
        # whatever is predicted, all cells learn; those without labelled pixels are ignored
        targets = relabel(
            unity_pyramid(labels, strides, self.ignore_index), rule="naive", ignore_index=self.ignore_index
        )
        for level, (logits, (truth, _)) in enumerate(zip(unity, targets, strict=True)):
            if logits.shape != truth.shape:
                raise ValueError(
                    f"The unity of level {level}, of stride {strides[level]}, must have shape {tuple(truth.shape)} for "
                    f"a target of shape {tuple(labels.shape)}, got {tuple(logits.shape)}. `stride` is that of the "
                    f"finest level with unity, {self.stride}."
                )
            losses.append(self.unity_loss(logits[:, None], truth))
        return torch.stack(losses).mean()
