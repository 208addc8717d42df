"""Folding at inference: batch normalisations into the layers before them, and convolutions into one another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from hggraph.nn import DeformConv2d, DenseHGConv, HGConv, PyConv2d, PyConv3d

__all__ = ["compose_convs", "fold_batch_norm"]

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)

# axis of the weight that holds the outputs
_OUTPUT_AXIS: dict[type[nn.Module], int] = {
    nn.Conv2d: 0,
    nn.Conv3d: 0,
    nn.Linear: 0,
    DeformConv2d: 0,
    nn.ConvTranspose2d: 1,
    DenseHGConv: 2,
    HGConv: 2,
}


def fold_batch_norm(module: nn.Module) -> None:
    """Make batch normalisations part of the layers before them, in place.

    ``BN(W x + b) = (g / s W) x + (b - m) g / s + h`` with statistics m and s, scale g and shift h. Neighbours in a
    ``Sequential`` are such a pair, and in any other module the children ``conv<n>`` and ``bn<n>``, as timm and
    torchvision name them. On pixels and on regions.

    Args:
        module: In eval mode.

    Raises:
        ValueError: if the module is in training mode, in which statistics are the batch's.

    Example:
        >>> pair = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4)).eval()
        >>> fold_batch_norm(pair)
        >>> pair
        Sequential(
          (0): Conv2d(3, 4, kernel_size=(1, 1), stride=(1, 1))
          (1): Identity()
        )
    """
    for parent in list(module.modules()):
        for layer, name in _pairs(parent):
            norm = parent.get_submodule(name)
            assert isinstance(norm, _NORMS)
            if norm.training:
                raise ValueError("`module` must be in eval mode to be folded; call `.eval()` first.")
            if norm.running_mean is None:  # statistics of each batch: no fixed function
                continue
            _scale(layer, norm)
            setattr(parent, name, nn.Identity())


def compose_convs(first: nn.Conv2d, second: nn.Conv2d) -> nn.Conv2d:
    """Return one convolution for a 1x1 convolution without bias and the convolution that follows it.

    Args:
        first: 1x1, without a bias: at the border the second reads zeros, where a bias would have been.
        second: Ungrouped, of any size.

    Raises:
        ValueError: if `first` is another convolution, or the channels do not fit.

    Example:
        >>> compose_convs(nn.Conv2d(6, 8, 1, bias=False), nn.Conv2d(8, 4, 3, padding=1))
        Conv2d(6, 4, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    """
    plain = (first.kernel_size, first.stride, first.groups, first.padding) == ((1, 1), (1, 1), 1, (0, 0))
    if not plain or first.bias is not None or second.groups != 1 or second.in_channels != first.out_channels:
        raise ValueError(f"Only a 1x1 convolution without bias folds into the next one, got {first} and {second}.")
    geometry: Any = {
        name: getattr(second, name) for name in ("kernel_size", "stride", "padding", "dilation", "padding_mode")
    }
    out = nn.Conv2d(first.in_channels, second.out_channels, bias=second.bias is not None, **geometry)
    out.to(second.weight)
    with torch.no_grad():
        product = torch.einsum("omyx,mi->oiyx", second.weight.double(), first.weight[:, :, 0, 0].double())
        out.weight.copy_(product)
        if out.bias is not None and second.bias is not None:
            out.bias.copy_(second.bias)
    return out.train(second.training)


def _pairs(parent: nn.Module) -> Iterator[tuple[Any, str]]:
    """Yield each layer that a normalisation follows, and the normalisation's name in `parent`."""
    children = dict(parent.named_children())
    names = list(children)
    if isinstance(parent, nn.Sequential):
        before = dict(zip(names[1:], names[:-1], strict=True))
    else:
        before = {name: name.replace("bn", "conv") for name in names if name.startswith("bn")}
    for name, previous in before.items():
        layer = _last(children.get(previous))
        norm = children[name]
        # a subclass may also activate, for example timm's BatchNormAct2d
        if layer is not None and any(type(norm).forward is kind.forward for kind in _NORMS):
            yield layer, name


def _last(layer: nn.Module | None) -> nn.Module | None:
    """Return the layer whose result comes out, if its outputs can be scaled."""
    while isinstance(layer, nn.Sequential) and len(layer):
        layer = layer[-1]
    return layer if type(layer) in _OUTPUT_AXIS or isinstance(layer, PyConv2d | PyConv3d) else None


def _scale(layer: Any, norm: Any) -> None:
    with torch.no_grad():
        # in double: a folded network then differs by rounding of its own arithmetic alone
        factor = (norm.running_var.double() + norm.eps).rsqrt()
        factor = factor if norm.weight is None else factor * norm.weight.double()
        shift = -norm.running_mean.double() * factor
        shift = shift if norm.bias is None else shift + norm.bias.double()
        if isinstance(layer, PyConv2d | PyConv3d):
            splits = [level.out_channels for level in layer.pyramid]
            for level, a, b in zip(layer.levels, factor.split(splits), shift.split(splits), strict=True):
                _apply(level, a, b)
        else:
            _apply(layer, factor, shift)


def _apply(layer: Any, factor: Tensor, shift: Tensor) -> None:
    """Scale and shift a layer's outputs."""
    if layer.bias is not None:
        shift = shift + layer.bias.double() * factor
    layer.weight.copy_(layer.weight.double() * _along(factor, layer))
    layer.bias = nn.Parameter(shift.to(layer.weight.dtype), requires_grad=layer.weight.requires_grad)


def _along(factor: Tensor, layer: nn.Module) -> Tensor:
    assert isinstance(layer.weight, Tensor)
    shape = [1] * layer.weight.dim()
    shape[_OUTPUT_AXIS[type(layer)]] = -1
    return factor.view(shape)
