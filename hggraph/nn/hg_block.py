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


class NodeBatchNorm(nn.BatchNorm1d):
    """Batch normalisation over nodes: shape ``(B, R, C)``, statistics over images and regions.

    Its ``state_dict`` is that of ``BatchNorm2d``.

    Example:
        >>> import torch
        >>> NodeBatchNorm(4)(torch.rand(2, 3, 4)).shape
        torch.Size([2, 3, 4])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise; see the class for shapes."""
        return super().forward(input.flatten(0, -2)).view_as(input)

    @classmethod
    def from_norm(cls, norm: nn.Module) -> NodeBatchNorm:
        """Take over parameters and statistics of a ``BatchNorm2d``.

        Raises:
            ValueError: for any other normalisation.
        """
        # a subclass may also activate, for example timm's BatchNormAct2d
        if not isinstance(norm, nn.BatchNorm2d) or type(norm).forward is not nn.BatchNorm2d.forward:
            raise ValueError(f"Only BatchNorm2d can be carried over to nodes, got {type(norm).__name__}.")
        out = cls(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        for reference in (norm.weight, norm.running_mean):
            if reference is not None:
                out.to(reference)
        out.load_state_dict(norm.state_dict())
        return out.train(norm.training)

    def to_norm(self) -> nn.BatchNorm2d:
        """Return the ``BatchNorm2d`` with these parameters and statistics, the inverse of `from_norm`."""
        out = nn.BatchNorm2d(self.num_features, self.eps, self.momentum, self.affine, self.track_running_stats)
        for reference in (self.weight, self.running_mean):
            if reference is not None:
                out.to(reference)
        out.load_state_dict(self.state_dict())
        return out.train(self.training)


class _HGBlock(nn.Module):
    """A residual block on regions: its residual branch is added to the (projected) input."""

    act: nn.Module
    downsample: nn.Module | None

    def residual(self, z: Tensor, adjacency: RegionAdjacency) -> Tensor:
        """Return the residual branch."""
        raise TypeError(f"{type(self).__name__} has no residual branch; use HGBasicBlock or HGBottleneck.")

    def forward(self, z: Tensor, adjacency: RegionAdjacency) -> Tensor:
        """Map region features ``(B, R, C)`` to ``(B, R, C')``."""
        shortcut = z if self.downsample is None else self.downsample(z)
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
        self.bn1 = NodeBatchNorm(channels)
        self.conv2 = DenseHGConv(channels, channels, stencil, bias=False)
        self.bn2 = NodeBatchNorm(channels)
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
        out.bn1 = NodeBatchNorm.from_norm(block.bn1)
        out.conv2 = DenseHGConv.from_conv(block.conv2, stencil=stencil)
        out.bn2 = NodeBatchNorm.from_norm(block.bn2)
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
        return self.bn2(self.conv2(self.act(self.bn1(self.conv1(z, adjacency))), adjacency))


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
        self.bn1 = NodeBatchNorm(channels)
        self.conv2 = DenseHGConv(channels, channels, stencil, bias=False)
        self.bn2 = NodeBatchNorm(channels)
        self.conv3 = nn.Linear(channels, out_channels, bias=False)
        self.bn3 = NodeBatchNorm(out_channels)
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
        out.bn1 = NodeBatchNorm.from_norm(block.bn1)
        out.conv2 = DenseHGConv.from_conv(block.conv2, stencil=Stencil.square(3) if stencil is None else stencil)
        out.bn2 = NodeBatchNorm.from_norm(block.bn2)
        out.conv3 = _convert_1x1(block.conv3)
        out.bn3 = NodeBatchNorm.from_norm(block.bn3)
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
        z = self.act(self.bn1(self.conv1(z)))
        z = self.act(self.bn2(self.conv2(z, adjacency)))
        return self.bn3(self.conv3(z))


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


def _projection(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(in_channels, out_channels, bias=False), NodeBatchNorm(out_channels))


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
            parts.append(NodeBatchNorm.from_norm(part))
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
            assert isinstance(part, NodeBatchNorm)
            parts.append(part.to_norm())
    return nn.Sequential(*parts)


def _load_block(block: nn.Module, regions: _HGBlock, convolutions: dict[str, nn.Module]) -> nn.Module:
    """Give a block on pixels its convolutions, and the normalisations and activation of a block on regions."""
    for name, conv in convolutions.items():
        setattr(block, name, conv)
        norm = regions.get_submodule(name.replace("conv", "bn"))
        assert isinstance(norm, NodeBatchNorm)
        setattr(block, name.replace("conv", "bn"), norm.to_norm())
        setattr(block, name.replace("conv", "act"), copy.deepcopy(regions.act))
    block.training = regions.training
    return block
