"""From images to class probabilities: whole or in windows, at several scales, mirrored too."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from inspect import signature
from itertools import chain, islice, product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hggraph._check import check_features, check_positive
from hggraph.cluster.importance import check_attention
from hggraph.inference.trained import Trained, for_inference
from hggraph.inference.windows import cut
from hggraph.models._network import Regions

__all__ = ["Predictor", "to_labels"]

Predict = Callable[[Tensor, Tensor | None], Tensor]
Undo = Callable[[Tensor], Tensor]


class Predictor:
    """Class probabilities of images from a network that gives logits of their size.

    Args:
        model: Maps ``(B, C, H, W)`` to logits ``(B, K, H, W)`` or a dict with them under ``"out"``, as the networks of
            `hggraph.models` and torchvision do. Each call runs it in eval mode and leaves it in the mode it was in. Of
            a `Trained`, as `load_trained` reads it from a model folder, the network in its form for inference (see
            `for_inference`), with its preprocessing.
        window: Side of square windows, or (height, width), in pixels: images larger than that are cut into overlapping
            windows, whose probabilities are blended. None: whole images.
        overlap: Least overlap of neighbouring windows: pixels if it is an int, a fraction of the window if a float.
        margin: Pixels at windows' inner edges that do not count; None: a quarter of the overlap (see `cut`).
        scales: Factors to which images are resized (bilinear); probabilities are resized back and averaged. Windows
            have the same size at every scale, as is usual for published figures.
        flip: Average with the prediction of the mirrored image (or window).
        batch_size: Most images or windows that go through the network at once.
        device: Where the network runs; it is moved there. None: where it is.
        dtype: ``torch.bfloat16`` or ``torch.float16`` for autocast, ``torch.float32`` for none, None for what holds
            around the call. Without autocast images are converted to the network's own type.

    Call with images ``(B, C, H, W)``, floating point and normalised as in training, and, for networks that take it,
    attention ``(B, H, W)`` in [0, 1]. Returns probabilities ``(B, K, H, W)``, float32, on the images' device: softmax
    over the classes, or for one class the sigmoid. They belong to `torch.inference_mode`.

    Raises:
        ValueError: if an option is out of range, images are empty, or the network's output does not fit them.
        TypeError: if images are not floating point.

    Note:
        With windows, images and probabilities stay on their device and only windows go to the network's: images may be
        larger than a GPU's memory. `predict_raster` is for those larger than main memory. Deterministic as far as the
        network is.

    Example:
        >>> predict = Predictor(nn.Conv2d(3, 5, 3, padding=1), window=32, scales=(0.5, 1.0), flip=True)
        >>> predict(torch.rand(1, 3, 40, 50)).shape
        torch.Size([1, 5, 40, 50])
    """

    def __init__(
        self,
        model: nn.Module | Trained,
        *,
        window: int | tuple[int, int] | None = None,
        overlap: int | float = 0.5,
        margin: int | None = None,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        batch_size: int = 1,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.window = None if window is None else (window, window) if isinstance(window, int) else tuple(window)
        if self.window is not None and len(self.window) != 2:
            raise ValueError(f"`window` must be a side in pixels or (height, width), got {window!r}.")
        for side in self.window or ():
            check_positive("window", side)
            cut(side, side, overlap, margin)  # checks
        if not scales or not all(0 < scale < math.inf for scale in scales):
            raise ValueError(f"`scales` must be positive numbers, at least one, got {scales!r}.")
        if dtype not in (None, torch.bfloat16, torch.float16, torch.float32):
            raise ValueError(f"`dtype` must be torch.bfloat16, torch.float16, torch.float32 or None, got {dtype!r}.")
        check_positive("batch_size", batch_size)
        trained = model if isinstance(model, Trained) else Trained(model, "segmentation", (), (), None)
        self.task, self.classes, self.palette = trained.task, trained.classes, trained.palette
        self.preprocessing = trained.preprocessing
        model = for_inference(model.net) if isinstance(model, Trained) else model
        self.model = model if device is None else model.to(device)
        self.overlap, self.margin = overlap, margin
        self.scales = tuple(scales)
        self.flip, self.batch_size, self.dtype = flip, batch_size, dtype

    def __call__(self, images: Tensor, attention: Tensor | None = None, undo: Undo | None = None) -> Tensor:
        """Return probabilities; see the class.

        Args:
            images: See the class.
            attention: See the class.
            undo: Brings maps ``(B, K, H, W)`` of these images to another size, that of the photos they were made of:
                logits, as evaluation does, or with windows or several scales probabilities.
        """
        if self.window is None:
            return self.whole(images, attention, undo)
        with self._ready(images, attention):
            found = self._at_scales(images, attention, self._in_windows)
            return found if undo is None else undo(found)

    def whole(self, images: Tensor, attention: Tensor | None = None, undo: Undo | None = None) -> Tensor:
        """Return what a call does, without windows."""
        device, parts = self._where(images)[0], []
        first_undo, last_undo = (undo, None) if self.scales == (1.0,) else (None, undo)

        def predict(x: Tensor, focus: Tensor | None) -> Tensor:
            return self._predict(x, focus, first_undo)

        with self._ready(images, attention):
            for first in range(0, len(images), self.batch_size):
                batch = slice(first, first + self.batch_size)
                focus = None if attention is None else attention[batch].to(device)
                found = self._at_scales(images[batch].to(device), focus, predict)
                parts.append((found if last_undo is None else last_undo(found)).to(images.device))
            return parts[0] if len(parts) == 1 else torch.cat(parts)

    def run(self, images: Any) -> Any:
        """Return what a network of another task than segmentation makes of images, or of a list of them, at once."""
        device, dtype = self._where(images[0])
        with self._modes(), torch.inference_mode():
            if isinstance(images, Tensor):
                return self._run(images, None)
            return self.model([image.to(device, dtype) for image in images])

    def regions(self, images: Tensor, attention: Tensor | None = None) -> list[Regions]:
        """Return what the network clusters in whole images: a list of `Regions`, empty if it clusters nothing.

        Raises:
            TypeError: if the network has no regions to return.
        """
        self.check_regions()
        with self._ready(images, attention):
            out = self._run(images, attention, return_regions=True)
        found: list[Regions] = out["regions"]
        return found

    def check_regions(self) -> None:
        """Raise a TypeError if the network has no regions to return."""
        if "return_regions" not in signature(self.model.forward).parameters:
            raise TypeError(f"{type(self.model).__name__} has no regions to return; use a network of hggraph.models.")

    @contextmanager
    def _ready(self, images: Tensor, attention: Tensor | None) -> Iterator[None]:
        """Check the input; then eval mode and no gradients, and each module's mode as it was afterwards."""
        check_features("images", images)
        if images.shape[0] == 0:
            raise ValueError(f"`images` must have at least one image, got shape {tuple(images.shape)}.")
        if attention is not None:
            check_attention(attention, (images.shape[0], images.shape[2], images.shape[3]))
        with self._modes(), torch.inference_mode():
            yield

    @contextmanager
    def _modes(self) -> Iterator[None]:
        """Hold the network in eval mode; each module's mode is as it was afterwards."""
        modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training

    def _at_scales(self, images: Tensor, attention: Tensor | None, predict: Predict) -> Tensor:
        size = (images.shape[2], images.shape[3])
        if self.scales == (1.0,):
            return predict(images, attention)
        total: Tensor | None = None
        for scale in self.scales:
            here = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
            focus = None if attention is None else _resize(attention[:, None], here)[:, 0].clamp(0, 1)
            found = _resize(predict(_resize(images, here), focus), size)
            total = found if total is None else total.add_(found)
        assert total is not None
        return total.div_(len(self.scales))

    def _in_windows(self, images: Tensor, attention: Tensor | None) -> Tensor:
        assert self.window is not None
        size = images.shape[2:]
        rows, columns = (cut(n, side, self.overlap, self.margin) for n, side in zip(size, self.window, strict=True))
        height, width = rows.weights.shape[1], columns.weights.shape[1]
        places = product(range(len(images)), range(len(rows.starts)), range(len(columns.starts)))
        device, total = self._where(images)[0], None
        while batch := list(islice(places, self.batch_size)):
            boxes = [
                (
                    image,
                    slice(rows.starts[i], rows.starts[i] + height),
                    slice(columns.starts[j], columns.starts[j] + width),
                )
                for image, i, j in batch
            ]
            x = torch.stack([images[image, :, y, x] for image, y, x in boxes]).to(device)
            focus = None if attention is None else torch.stack([attention[box] for box in boxes]).to(device)
            found = self._predict(x, focus).to(images.device)
            if total is None:
                total = found.new_zeros(len(images), found.shape[1], *size)
            for (_, i, j), (image, y, x_), part in zip(batch, boxes, found, strict=True):
                weight = rows.weights[i].to(part.device)[:, None] * columns.weights[j].to(part.device)
                total[image, :, y, x_] += part.mul_(weight)
        assert total is not None
        return total.clamp_(max=1)  # weights sum to 1 up to rounding

    def _predict(self, x: Tensor, attention: Tensor | None, undo: Undo | None = None) -> Tensor:
        """Return probabilities of images that are on the network's device."""
        logits = [self._logits(x, attention)]
        if self.flip:
            logits.append(self._logits(x.flip(-1), None if attention is None else attention.flip(-1)).flip(-1))
        total: Tensor | None = None
        for one in logits:
            one = (one if undo is None else undo(one)).float()
            found = one.sigmoid() if one.shape[1] == 1 else one.softmax(1)
            total = found if total is None else total.add_(found).div_(2)
        assert total is not None
        return total

    def _logits(self, x: Tensor, attention: Tensor | None) -> Tensor:
        out = self._run(x, attention)
        logits = out["out"] if isinstance(out, Mapping) and "out" in out else out
        if not isinstance(logits, Tensor) or logits.dim() != 4:
            found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f'The network must return logits (B, K, H, W) or a dict with them as "out", got {found}.')
        if logits.shape[0] != x.shape[0] or logits.shape[2:] != x.shape[2:] or logits.shape[1] == 0:
            raise ValueError(
                f"The network's logits must have the images' size, here ({x.shape[0]}, K, {x.shape[2]}, {x.shape[3]}), "
                f"got {tuple(logits.shape)}. Resize them in the network."
            )
        return logits

    def _run(self, x: Tensor, attention: Tensor | None, return_regions: bool = False) -> Any:
        device, dtype = self._where(x)
        context: AbstractContextManager[Any] = nullcontext()
        if self.dtype is not None:
            lower = self.dtype is not torch.float32
            context = torch.autocast(device.type, dtype=self.dtype if lower else None, enabled=lower)
        if self.dtype in (None, torch.float32):
            x = x.to(dtype)
        options: dict[str, Any] = {} if attention is None else {"attention": attention.to(device)}
        if return_regions:
            options["return_regions"] = True
        with context:
            return self.model(x.to(device), **options)

    def _where(self, images: Tensor) -> tuple[torch.device, torch.dtype]:
        """Return the network's device and type; the images' own if it has neither."""
        for tensor in chain(self.model.parameters(), self.model.buffers()):
            if tensor.is_floating_point():
                return tensor.device, tensor.dtype
        return images.device, images.dtype


def to_labels(probabilities: Tensor) -> Tensor:
    """Return the most probable class of each pixel.

    Args:
        probabilities: Shape ``(B, K, H, W)``.

    Returns:
        Labels ``(B, H, W)``, int64: the first of equally probable classes; for one class 1 where its probability is at
        least a half, else 0.

    Example:
        >>> to_labels(torch.tensor([0.2, 0.5]).view(1, 1, 1, 2))
        tensor([[[0, 1]]])
    """
    if probabilities.shape[1] == 1:
        return (probabilities[:, 0] >= 0.5).long()
    return probabilities.max(1).indices  # on a CPU several times faster than argmax


def _resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    return x if tuple(x.shape[2:]) == size else F.interpolate(x, size, mode="bilinear", align_corners=False)
