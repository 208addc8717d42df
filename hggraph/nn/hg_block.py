"""Residual blocks on regions, with the weights of ordinary residual blocks."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from hggraph.graph import RegionAdjacency
from hggraph.nn.dense_hg_conv import DenseHGConv
from hggraph.stencil import Stencil

__all__ = ["HGBasicBlock", "HGBottleneck"]


class _HGBlock(nn.Module):
    """A residual block on regions: its residual branch is added to the (projected) input."""

    act: nn.Module
    downsample: nn.Module | None

    def residual(self, z: Tensor, adjacency: RegionAdjacency) -> Tensor:
        """Return the residual branch."""
        raise TypeError(f"{type(self).__name__} has no residual branch; use HGBasicBlock or HGBottleneck.")

    def forward(self, z: Tensor, adjacency: RegionAdjacency) -> Tensor:
        """Map region features ``(B, R, C)`` to ``(B, R, C')``."""
        shortcut = z if self.downsample is None else on_nodes(self.downsample, z)
        return self.act(self.residual(z, adjacency) + shortcut)


class HGBasicBlock(_HGBlock):
    """ResNet's basic block with both 3x3 convolutions on regions (HG-Conv Sec. 4.4).

    Args:
        in_channels: Channels of the input.
        channels: Channels of the output.
        stencil: Directions; ``Stencil.square(3)`` when None.

    Shapes:
        - **input:** region features ``(B, R, in_channels)``, a `RegionAdjacency`
        - **output:** ``(B, R, channels)``

    Example:
        >>> import torch
        >>> adjacency = RegionAdjacency(Stencil.square(3), torch.rand(1, 9, 5, 5))
        >>> HGBasicBlock(8, 16)(torch.rand(1, 5, 8), adjacency).shape
        torch.Size([1, 5, 16])
    """

    def __init__(self, in_channels: int, channels: int, stencil: Stencil | None = None) -> None:
        super().__init__()
        self.conv1 = DenseHGConv(in_channels, channels, stencil, bias=False)
        self.bn1 = nn.BatchNorm1d(channels)
        self.conv2 = DenseHGConv(channels, channels, stencil, bias=False)
        self.bn2 = nn.BatchNorm1d(channels)
        self.act = nn.ReLU(inplace=True)
        self.downsample = None if in_channels == channels else _projection(in_channels, channels)

    @classmethod
    def from_block(cls, block: Any, *, stencil: Stencil | None = None) -> HGBasicBlock:
        """Take over the weights of timm's or torchvision's ``BasicBlock``; stride and dilation have no meaning here.

        Raises:
            ValueError: if the block has parts that do not carry over to regions; the text names them.
        """
        check_block(block, ("conv1", "bn1", "conv2", "bn2"), "BasicBlock")
        stencil = Stencil.square(3) if stencil is None else stencil
        out = cls.__new__(cls)
        nn.Module.__init__(out)
        out.conv1 = DenseHGConv.from_conv(block.conv1, stencil=stencil)
        out.bn1 = _to_nodes(block.bn1)
        out.conv2 = DenseHGConv.from_conv(block.conv2, stencil=stencil)
        out.bn2 = _to_nodes(block.bn2)
        out.act = _activation(block)
        out.downsample = _convert_downsample(block.downsample)
        out.training = block.training  # its parts keep their own mode, frozen normalisation for example
        return out

    def to_block(self) -> nn.Module:
        """Return timm's ``BasicBlock`` with these weights, stride 1 and no dilation: the inverse of `from_block`."""
        from timm.models.resnet import BasicBlock

        first, last = self.conv1.to_conv(), self.conv2.to_conv()
        out = BasicBlock(first.in_channels, last.out_channels, downsample=_to_downsample(self.downsample))
        return _load_block(out, self, {"conv1": first, "conv2": last})

    def residual(self, z: Tensor, adjacency: RegionAdjacency) -> Tensor:
        """Return ``bn2(conv2(act(bn1(conv1(z)))))``."""
        z = self.act(on_nodes(self.bn1, self.conv1(z, adjacency)))
        return on_nodes(self.bn2, self.conv2(z, adjacency))


class HGBottleneck(_HGBlock):
    """ResNet's bottleneck with its 3x3 convolution on regions (HG-Conv Sec. 4.4).

    Args:
        in_channels: Channels of the input.
        channels: Channels inside; the output has 4 times as many.
        stencil: Directions; ``Stencil.square(3)`` when None.

    Shapes:
        - **input:** region features ``(B, R, in_channels)``, a `RegionAdjacency`
        - **output:** ``(B, R, 4 * channels)``

    Example:
        >>> import torch
        >>> adjacency = RegionAdjacency(Stencil.square(3), torch.rand(1, 9, 5, 5))
        >>> HGBottleneck(8, 4)(torch.rand(1, 5, 8), adjacency).shape
        torch.Size([1, 5, 16])
    """

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stencil: Stencil | None = None) -> None:
        super().__init__()
        out_channels = self.expansion * channels
        self.conv1 = nn.Linear(in_channels, channels, bias=False)
        self.bn1 = nn.BatchNorm1d(channels)
        self.conv2 = DenseHGConv(channels, channels, stencil, bias=False)
        self.bn2 = nn.BatchNorm1d(channels)
        self.conv3 = nn.Linear(channels, out_channels, bias=False)
        self.bn3 = nn.BatchNorm1d(out_channels)
        self.act = nn.ReLU(inplace=True)
        self.downsample = None if in_channels == out_channels else _projection(in_channels, out_channels)

    @classmethod
    def from_block(cls, block: Any, *, stencil: Stencil | None = None) -> HGBottleneck:
        """Take over the weights of timm's or torchvision's ``Bottleneck``; stride and dilation have no meaning here.

        Raises:
            ValueError: if the block has parts that do not carry over to regions; the text names them.
        """
        check_block(block, ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3"), "Bottleneck")
        out = cls.__new__(cls)
        nn.Module.__init__(out)
        out.conv1 = _convert_1x1(block.conv1)
        out.bn1 = _to_nodes(block.bn1)
        out.conv2 = DenseHGConv.from_conv(block.conv2, stencil=Stencil.square(3) if stencil is None else stencil)
        out.bn2 = _to_nodes(block.bn2)
        out.conv3 = _convert_1x1(block.conv3)
        out.bn3 = _to_nodes(block.bn3)
        out.act = _activation(block)
        out.downsample = _convert_downsample(block.downsample)
        out.training = block.training  # its parts keep their own mode, frozen normalisation for example
        return out

    def to_block(self) -> nn.Module:
        """Return timm's ``Bottleneck`` with these weights, stride 1 and no dilation: the inverse of `from_block`."""
        from timm.models.resnet import Bottleneck

        first, middle, last = _to_1x1(self.conv1), self.conv2.to_conv(), _to_1x1(self.conv3)
        out = Bottleneck(first.in_channels, middle.out_channels, downsample=_to_downsample(self.downsample))
        return _load_block(out, self, {"conv1": first, "conv2": middle, "conv3": last})

    def residual(self, z: Tensor, adjacency: RegionAdjacency) -> Tensor:
        """Return ``bn3(conv3(act(bn2(conv2(act(bn1(conv1(z))))))))``."""
        z = self.act(on_nodes(self.bn1, self.conv1(z)))
        z = self.act(on_nodes(self.bn2, self.conv2(z, adjacency)))
        return on_nodes(self.bn3, self.conv3(z))


def on_nodes(layer: nn.Module, z: Tensor) -> Tensor:
    """Apply layers on rows ``(N, C)``, for example ``BatchNorm1d``, to region features ``(B, R, C)``.

    Statistics are then those of all nodes of all images. With plain rows and the plain class,
    ``torch.nn.SyncBatchNorm.convert_sync_batchnorm`` converts these layers as any others.
    """
    rows: Tensor = layer(z.flatten(0, 1))
    return rows.view(*z.shape[:2], rows.shape[1])


def check_block(block: Any, parts: tuple[str, ...], name: str) -> None:
    """Raise unless `block` is a plain residual block with exactly these convolutions and normalisations."""
    missing = [part for part in parts if not hasattr(block, part)]
    surplus = [part for part in ("conv3", "conv4") if hasattr(block, part) and part not in parts]
    if missing or surplus or not hasattr(block, "downsample"):
        raise ValueError(
            f"`block` must be a {name} of timm or torchvision, got {type(block).__name__}"
            f" (missing {missing or 'nothing'}, unexpected {surplus or 'nothing'})."
        )
    # timm's optional parts between the convolutions
    optional = ("se", "aa", "drop_block", "drop_path")
    extra = [part for part in optional if not _is_nothing(getattr(block, part, None))]
    if extra:
        raise ValueError(f"`block` has parts that do not carry over to regions: {', '.join(extra)}.")


def _is_nothing(part: Any) -> bool:
    return part is None or isinstance(part, nn.Identity)


def _activation(block: Any) -> nn.Module:
    act = getattr(block, "act1", None) or getattr(block, "relu", None)
    if act is None:
        raise ValueError(f"`block` must have an activation `act1` or `relu`, got {type(block).__name__}.")
    return copy.deepcopy(act)


def _to_nodes(norm: nn.Module) -> nn.BatchNorm1d:
    """Return parameters and statistics of a ``BatchNorm2d`` for rows of nodes."""
    # a subclass may also activate, for example timm's BatchNormAct2d
    if not isinstance(norm, nn.BatchNorm2d) or type(norm).forward is not nn.BatchNorm2d.forward:
        raise ValueError(f"Only BatchNorm2d can be carried over to nodes, got {type(norm).__name__}.")
    out = nn.BatchNorm1d(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    return _load_norm(out, norm)


def _to_pixels(norm: nn.Module) -> nn.BatchNorm2d:
    """Return the ``BatchNorm2d`` of a normalisation of nodes."""
    assert isinstance(norm, nn.BatchNorm1d | nn.SyncBatchNorm)
    out = nn.BatchNorm2d(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    return _load_norm(out, norm)


def _load_norm(out: Any, norm: Any) -> Any:
    for reference in (norm.weight, norm.running_mean):
        if reference is not None:
            out.to(reference)
    out.load_state_dict(norm.state_dict())
    return out.train(norm.training)


def _projection(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(in_channels, out_channels, bias=False), nn.BatchNorm1d(out_channels))


def _convert_1x1(conv: nn.Module) -> nn.Linear:
    if not isinstance(conv, nn.Conv2d) or conv.kernel_size != (1, 1) or conv.groups != 1:
        raise ValueError(f"Only an ungrouped 1x1 convolution acts on regions one by one, got {conv}.")
    linear = nn.Linear(conv.in_channels, conv.out_channels, bias=conv.bias is not None)
    linear.to(device=conv.weight.device, dtype=conv.weight.dtype)
    with torch.no_grad():
        linear.weight.copy_(conv.weight.flatten(1))
        if conv.bias is not None:
            linear.bias.copy_(conv.bias)
    return linear


def _convert_downsample(downsample: nn.Module | None) -> nn.Module | None:
    if downsample is None or isinstance(downsample, nn.Identity):
        return None
    parts: list[nn.Module] = []
    for part in downsample if isinstance(downsample, nn.Sequential) else [downsample]:
        if isinstance(part, nn.Conv2d):
            parts.append(_convert_1x1(part))
        elif isinstance(part, nn.BatchNorm2d):
            parts.append(_to_nodes(part))
        elif not isinstance(part, nn.Identity | nn.AvgPool2d):  # regions already stand for many pixels
            raise ValueError(f"The shortcut holds {type(part).__name__}, which does not carry over to regions.")
    return nn.Sequential(*parts)


def _to_1x1(linear: nn.Linear) -> nn.Conv2d:
    conv = nn.Conv2d(linear.in_features, linear.out_features, 1, bias=linear.bias is not None)
    conv.to(device=linear.weight.device, dtype=linear.weight.dtype)
    with torch.no_grad():
        conv.weight.copy_(linear.weight[:, :, None, None])
        if conv.bias is not None:
            conv.bias.copy_(linear.bias)
    return conv


def _to_downsample(downsample: nn.Module | None) -> nn.Module | None:
    if downsample is None:
        return None
    parts: list[nn.Module] = []
    for part in downsample.children():
        if isinstance(part, nn.Linear):
            parts.append(_to_1x1(part))
        else:
            parts.append(_to_pixels(part))
    return nn.Sequential(*parts)


def _load_block(block: nn.Module, regions: _HGBlock, convolutions: dict[str, nn.Module]) -> nn.Module:
    """Give a block on pixels its convolutions, and the normalisations and activation of a block on regions."""
    for name, conv in convolutions.items():
        setattr(block, name, conv)
        norm = name.replace("conv", "bn")
        setattr(block, norm, _to_pixels(regions.get_submodule(norm)))
        setattr(block, name.replace("conv", "act"), copy.deepcopy(regions.act))
    block.training = regions.training
    return block
