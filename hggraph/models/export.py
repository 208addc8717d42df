"""Export to ONNX, for runtimes that know nothing of regions."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hggraph._files import write_atomically
from hggraph.cluster import SoftSLIC
from hggraph.models._network import SegmentationNetwork
from hggraph.ops._library import OpenOperators

__all__ = ["export_onnx"]


class _Outputs(nn.Module):
    """A network's logits as a tuple, made of PyTorch's own operations."""

    def __init__(self, model: SegmentationNetwork) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        with OpenOperators():
            out: dict[str, Any] = self.model(image)
        return tuple(out.values())


def export_onnx(
    model: SegmentationNetwork, path: str | Path, size: tuple[int, int], *, batch_size: int = 1
) -> list[str]:
    """Write a segmentation network as an ONNX file of standard operators.

    Everything is in it: importance, sampling with its fixed noise, soft SLIC, adjacency, the layers on regions.

    Args:
        model: A network in eval mode, for example ``hg_resnet(...).eval()`` or its ``fold()``.
        path: The file to write, ending in ``.onnx``; never half of it.
        size: Height and width of the images: they are fixed in the file, as the number of regions is.
        batch_size: Images in a batch.

    Returns:
        The names of the outputs, ``"out"`` first; the input is ``"image"``, shape ``(batch_size, C, H, W)``.

    Raises:
        ValueError: if the network is in training mode, connects its regions (which depends on the image), or `path`
            ends otherwise.
        ImportError: if the packages onnx and onnxscript are missing.

    Note:
        Where centres are equally important, another runtime may order them otherwise and get other regions.

    Example:
        >>> from hggraph.models import hg_resnet
        >>> export_onnx(hg_resnet(18), "net.onnx", (129, 129))
        Traceback (most recent call last):
        ValueError: `model` must be in eval mode; call `.eval()` first.
    """
    if model.training:
        raise ValueError("`model` must be in eval mode; call `.eval()` first.")
    if Path(path).suffix != ".onnx":
        raise ValueError(f"`path` must end in .onnx, got {str(path)!r}.")
    if any(isinstance(part, SoftSLIC) and part.connected for part in model.modules()):
        raise ValueError(
            "`model` must cluster with connected=False: to connect regions reads the image; make it with "
            "clusterer=SoftSLIC()."
        )
    if missing := [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]:
        raise ImportError(f'Export needs {" and ".join(missing)}: pip install "hggraph[onnx]"')
    parameter = next(model.parameters())
    image = torch.zeros(batch_size, model.in_channels, *size, dtype=parameter.dtype, device=parameter.device)
    outputs = _Outputs(model).eval()
    with torch.no_grad():
        names = list(model(image))
        exported = torch.export.export(outputs, (image,))
        program = torch.onnx.export(
            exported, dynamo=True, input_names=["image"], output_names=names, verbose=False, optimize=True
        )
    assert program is not None
    write_atomically(path, lambda temporary: program.save(temporary))
    return names
