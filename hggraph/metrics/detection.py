"""Average precision of detected boxes and masks, as COCO evaluates them."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch.distributed as dist
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision

from hggraph.metrics._exact import QuietMetric
from hggraph.metrics._inputs import check_nan

__all__ = ["CocoAP"]

_NAMES = {
    "map": "ap",
    "map_50": "ap50",
    "map_75": "ap75",
    "map_small": "ap_s",
    "map_medium": "ap_m",
    "map_large": "ap_l",
}


class CocoAP(QuietMetric, MeanAveragePrecision):
    """COCO's average precision, computed by pycocotools through torchmetrics.

    Beyond torchmetrics' own class: processes may have different numbers of images, or none (there each state is
    gathered item by item, which takes equal numbers), images are put into one order first, so that equal scores give
    the same result however the data were split, and the detections of torchvision's networks are taken as they are.

    Args:
        kinds: What is matched: ``("bbox",)``, ``("segm",)`` or both.
        mask_threshold: Above which a predicted mask of probabilities is taken.

    Shapes:
        - **prediction:** a list with a dict for each image: ``boxes`` ``(N, 4)`` as (x1, y1, x2, y2) in pixels,
          ``scores`` ``(N,)``, ``labels`` ``(N,)`` integers, and for "segm" ``masks`` ``(N, 1, H, W)`` or ``(N, H, W)``,
          bool or probabilities
        - **target:** the same without scores; ``iscrowd`` ``(N,)`` and ``area`` ``(N,)`` if there are any
        - **output:** a dict of scalars in [0, 1]: ``"ap"`` (mean over IoU 0.5 to 0.95), ``"ap50"``, ``"ap75"``, and
          ``"ap_s"``, ``"ap_m"``, ``"ap_l"`` by size, all for boxes; those of masks begin with ``"mask_"``. -1, COCO's
          value, where there is no object, and so without data

    Raises:
        ImportError: if pycocotools is not installed; the text says how to get it.
        ValueError: if `kinds` is none of these; in `update`, if lengths or keys do not fit, or a box or score is NaN.

    Note:
        Keeps every box (and mask, run-length encoded) on the CPU until `compute`, which takes seconds per thousand
        images.

    Example:
        >>> import torch
        >>> box = torch.tensor([[10.0, 10.0, 50.0, 60.0]])
        >>> metric = CocoAP()  # doctest: +SKIP
        >>> metric.update(
        ...     [{"boxes": box, "scores": torch.tensor([0.9]), "labels": torch.tensor([1])}],
        ...     [{"boxes": box, "labels": torch.tensor([1])}],
        ... )  # doctest: +SKIP
        >>> metric.compute()["ap50"]  # doctest: +SKIP
        tensor(1.)
    """

    def __init__(self, kinds: Sequence[Literal["bbox", "segm"]] = ("bbox",), *, mask_threshold: float = 0.5) -> None:
        missing = [name for name in ("pycocotools", "torchvision") if importlib.util.find_spec(name) is None]
        if missing:
            raise ImportError(
                f"COCO's average precision needs {' and '.join(missing)}, which is not installed: "
                f"pip install {' '.join(missing)}"
            )
        if not kinds or set(kinds) - {"bbox", "segm"} or isinstance(kinds, str):
            raise ValueError(f'`kinds` must be a sequence of "bbox" and "segm", got {kinds!r}.')
        super().__init__(iou_type=tuple(kinds))
        self.warn_on_many_detections = False  # COCO counts the best 100 of an image; the others are no mistake
        self.kinds = tuple(kinds)
        self.mask_threshold = mask_threshold

    def update(self, prediction: Sequence[Mapping[str, Tensor]], target: Sequence[Mapping[str, Tensor]]) -> None:  # type: ignore[override]
        """Take a batch; see the class for what it holds."""
        if len(prediction) != len(target):
            raise ValueError(
                f"`prediction` and `target` must be as long, one dict for each image, got {len(prediction)} and "
                f"{len(target)}."
            )
        plain = [[self._plain(item) for item in items] for items in (prediction, target)]
        for name, items in zip(("prediction", "target"), plain, strict=True):
            for number, item in enumerate(items):
                for key in item.keys() & {"boxes", "scores"}:
                    check_nan(f"{name}[{number}][{key!r}]", item[key])
        super().update(*plain)

    def compute(self) -> dict[str, Tensor]:
        """Return the precisions that the class lists."""
        self._order_images()
        found = super().compute()
        result: dict[str, Tensor] = {}
        for kind in self.kinds:
            source = f"{kind}_" if len(self.kinds) > 1 else ""
            prefix = "mask_" if kind == "segm" else ""
            result |= {f"{prefix}{name}": found[f"{source}{key}"] for key, name in _NAMES.items()}
        return result

    def _plain(self, item: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return detached tensors on the CPU, masks as bool ``(N, H, W)``."""
        plain = {name: value.detach().cpu() for name, value in item.items() if isinstance(value, Tensor)}
        masks = plain.get("masks")
        if masks is not None:
            masks = masks[:, 0] if masks.dim() == 4 else masks
            plain["masks"] = masks > self.mask_threshold if masks.is_floating_point() else masks.bool()
        return plain

    def _order_images(self) -> None:
        """Put the images of all states into one order, that of their content."""
        states = {name: getattr(self, name) for name in self._reductions}
        states = {name: items for name, items in states.items() if len(items)}
        keys = [repr([_content(item) for item in image]) for image in zip(*states.values(), strict=True)]
        order = sorted(range(len(keys)), key=keys.__getitem__)
        for name, items in states.items():
            setattr(self, name, [items[index] for index in order])

    def _sync_dist(self, dist_sync_fn: Any = None, process_group: Any = None) -> None:
        group = process_group or self.process_group
        for name in self._reductions:
            mine = [item.cpu() if isinstance(item, Tensor) else item for item in getattr(self, name)]
            parts: list[list[Any]] = [[] for _ in range(dist.get_world_size(group))]
            dist.all_gather_object(parts, mine, group=group)
            setattr(self, name, [item for part in parts for item in part])


def _content(item: Any) -> Any:
    return (item.dtype, item.tolist()) if isinstance(item, Tensor) else item
