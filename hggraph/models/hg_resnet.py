"""HG-ResNet: residual networks whose last stages run on regions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hggraph.models._network import Clustered, SegmentationNetwork, assign
from hggraph.models.fold import compose_convs
from hggraph.models.heads import fcn_head
from hggraph.models.weights import create_backbone
from hggraph.nn import DeformConv2d, HGStage

__all__ = ["DEPTHS", "HGResNet", "ResNetTrunk", "hg_resnet", "out_channels", "resnet_trunk"]

DEPTHS = (18, 34, 50, 101, 152)
VARIANTS = ("dilation", "dcn")
HG_STAGES = ((), (4,), (3, 4))


class ResNetTrunk(nn.Module):
    """The stages of one of timm's ResNets, the last ones on regions (HG-Conv Sec. 4.4).

    Args:
        resnet: timm's ResNet, of `BasicBlock` or `Bottleneck`.
        hg_stages: Stages on regions: none, the fourth, or the third and fourth together.
        variant: ``"dcn"`` makes the 3x3 convolutions of stages 3 and 4 that stay on pixels deformable (``conv2`` of
            each block), ``"dilation"`` leaves them as they are.
        clusterer: What clusters; ``SoftSLIC()`` when None.
        last_stage: 4, or 3 to leave the fourth out, without stages on regions.
        noise_cancel: See `HGStage`.
        max_direction: See `HGStage`.

    Shapes:
        - **input:** images ``(B, C, H, W)``, attention ``(B, H, W)`` *(optional)*
        - **output:** the maps of the stages, and what was clustered. The last map of `hg_stages` (3, 4) stands for
          both stages.

    The regions' output is concatenated with their input and goes through a 1x1 convolution, linear and without bias.

    Example:
        >>> import torch
        >>> maps, clustered = resnet_trunk(18).eval()(torch.rand(1, 3, 64, 64))
        >>> [tuple(x.shape[1:]) for x in maps], len(clustered)
        ([(64, 16, 16), (128, 8, 8), (256, 8, 8), (512, 8, 8)], 1)
    """

    def __init__(
        self,
        resnet: Any,
        *,
        hg_stages: Sequence[int] = (4,),
        variant: str = "dilation",
        clusterer: nn.Module | None = None,
        last_stage: int = 4,
        noise_cancel: bool = True,
        max_direction: bool = True,
    ) -> None:
        super().__init__()
        hg_stages = check_hg_stages(hg_stages)
        if last_stage not in (3, 4) or (hg_stages and last_stage == 3):
            raise ValueError(
                f"`last_stage` must be 4, or 3 with hg_stages=(), got {last_stage!r} with hg_stages={hg_stages}."
            )
        if variant not in VARIANTS:
            raise ValueError(f"`variant` must be one of {VARIANTS}, got {variant!r}.")
        stages = stages_of(resnet)[:last_stage]
        self.stem = nn.Sequential(resnet.conv1, resnet.bn1, resnet.act1, resnet.maxpool)
        self.channels = [out_channels(stage) for stage in stages]
        kept = last_stage - len(hg_stages)
        self.stages = nn.ModuleList(stages[:kept])
        if variant == "dcn":
            for stage in self.stages[2:]:
                make_deformable(stage)
        self.hg: HGStage | None = None
        if hg_stages:
            self.channels = [*self.channels[:kept], self.channels[3]]
            before, after = self.channels[-2:]
            fuse = nn.Conv2d(before + after, after, 1, bias=False)
            blocks = [block for stage in stages[kept:] for block in stage]
            self.hg = HGStage.from_stage(
                blocks, clusterer, fuse=fuse, noise_cancel=noise_cancel, max_direction=max_direction
            )

    def forward(self, x: Tensor, attention: Tensor | None = None) -> tuple[list[Tensor], list[Clustered]]:
        """Return the stages' maps; see the class for shapes."""
        maps = self.on_pixels(x)
        if self.hg is None:
            return maps, []
        assignment = assign(self.hg, maps[-1], attention)
        return [*maps, self.hg(maps[-1], assignment=assignment)], [Clustered("hg", maps[-1], assignment)]

    def on_pixels(self, x: Tensor) -> list[Tensor]:
        """Return the maps of the stages that are on pixels."""
        x = self.stem(x)
        maps: list[Tensor] = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class HGResNet(SegmentationNetwork):
    """A `ResNetTrunk` with a fully convolutional head; see `hg_resnet`."""

    def __init__(
        self, trunk: ResNetTrunk, in_channels: int, num_classes: int, *, aux: bool = True, dropout: float = 0.1
    ) -> None:
        super().__init__(in_channels, num_classes)
        self.trunk = trunk
        before, after = trunk.channels[-2:]
        self.head = fcn_head(after, num_classes, dropout=dropout)
        self.aux_head = fcn_head(before, num_classes, dropout=dropout) if aux else None

    def predict(self, x: Tensor, attention: Tensor | None) -> tuple[dict[str, Tensor], list[Clustered]]:
        """Return logits at the last map's size."""
        maps, clustered = self.trunk(x, attention)
        logits = {"out": self.head(maps[-1])}
        if self.training and self.aux_head is not None:
            logits["aux"] = self.aux_head(maps[-2])
        return logits, clustered

    def drop_training_parts(self) -> None:
        """Remove the auxiliary head."""
        self.aux_head = None

    def compose(self) -> None:
        """Make the last 1x1 and the head's 3x3 one 3x3: nothing non-linear stands between them."""
        stage = self.trunk.hg
        if stage is not None and stage.fuse is not None:
            first = self.head[0]
            assert isinstance(first, nn.Conv2d)
            stage.fuse = compose_convs(stage.fuse, first)
            self.head[0] = nn.Identity()


def hg_resnet(
    depth: int | str = 50,
    variant: str = "dilation",
    hg_stages: Sequence[int] = (4,),
    num_classes: int = 19,
    *,
    in_channels: int = 3,
    stem: str | None = None,
    output_stride: int = 8,
    last_stage: int = 4,
    clusterer: nn.Module | None = None,
    noise_cancel: bool = True,
    max_direction: bool = True,
    aux: bool = True,
    dropout: float = 0.1,
    pretrained: bool | str | Path = False,
) -> HGResNet:
    """Make a ResNet for segmentation whose last stages run on regions, or its dense counterpart.

    HG-ResNet of HG-Conv (Sec. 4.4): the convolutions of stage 4, or of stages 3 and 4, become `DenseHGConv` with the
    same, pretrained weights; their output is concatenated with their input and goes through a linear 1x1 convolution,
    computed as ``X Wa + S (Z Wb)``. Then a 3x3 head. Called with images it returns what
    `SegmentationNetwork.forward` says; ``fold()`` gives a faster form for inference.

    Args:
        depth: 18, 34, 50, 101 or 152; or a name of timm's, for a ResNet of the same blocks.
        variant: ``"dilation"``, or ``"dcn"``: deformable 3x3 convolutions in what is on pixels of stages 3 and 4.
        hg_stages: ``(4,)``, ``(3, 4)``, or ``()`` for the dense network.
        num_classes: Channels of the logits, at least 1.
        in_channels: Channels of the images.
        stem: ``"plain"`` 7x7, or ``"deep"``, three 3x3 of 64, 64 and 128 channels. None: deep from 50 on, as in
            the paper, for which timm has weights; plain for 18 and 34.
        output_stride: Image pixels per pixel of the last map: 8, 16 or 32. On regions stage 4 has no stride.
        last_stage: 3 leaves stage 4 out of the dense network: what it has to be compared with, too.
        clusterer: What clusters; ``SoftSLIC()``, 64 pixels to a region and 3 iterations, when None.
        noise_cancel: Subtract the opposite direction from each (HG-Conv Eq. 7). Its Table 7 compares with False.
        max_direction: Keep only the strongest direction of each pair of regions; likewise.
        aux: Have an auxiliary head on what the regions are made of (for the dense network, on stage 3).
        dropout: Share of channels dropped in the heads in training.
        pretrained: True for timm's ImageNet weights, a path for a file of them, False for random ones.

    Returns:
        The network. Images are normalised with ImageNet's mean and deviation if the weights are ImageNet's.

    Raises:
        ValueError: if an argument is not as said, or the weights are another network's.
        FileNotFoundError, RuntimeError: if the weights are not to be had; see `create_backbone`.

    Note:
        Static shapes up to 512 regions: it compiles into one graph and exports.

    Example:
        >>> import torch
        >>> net = hg_resnet(18, num_classes=5).eval()
        >>> net(torch.rand(1, 3, 64, 80))["out"].shape
        torch.Size([1, 5, 64, 80])
    """
    trunk = resnet_trunk(
        depth,
        variant=variant,
        hg_stages=hg_stages,
        in_channels=in_channels,
        stem=stem,
        output_stride=output_stride,
        last_stage=last_stage,
        clusterer=clusterer,
        noise_cancel=noise_cancel,
        max_direction=max_direction,
        pretrained=pretrained,
    )
    return HGResNet(trunk, in_channels, num_classes, aux=aux, dropout=dropout)


def resnet_trunk(
    depth: int | str,
    *,
    variant: str = "dilation",
    hg_stages: Sequence[int] = (4,),
    in_channels: int = 3,
    stem: str | None = None,
    output_stride: int = 8,
    last_stage: int = 4,
    clusterer: nn.Module | None = None,
    noise_cancel: bool = True,
    max_direction: bool = True,
    pretrained: bool | str | Path = False,
) -> ResNetTrunk:
    """Make the stages of a ResNet; the arguments are those of `hg_resnet`."""
    check_hg_stages(hg_stages)
    if output_stride not in (8, 16, 32):
        raise ValueError(f"`output_stride` must be 8, 16 or 32, got {output_stride!r}.")
    name, deep_stem = _timm_name(depth, stem)
    resnet = create_backbone(
        name, pretrained=pretrained, in_channels=in_channels, output_stride=output_stride, deep_stem=deep_stem
    )
    return ResNetTrunk(
        resnet,
        hg_stages=hg_stages,
        variant=variant,
        clusterer=clusterer,
        last_stage=last_stage,
        noise_cancel=noise_cancel,
        max_direction=max_direction,
    )


def check_hg_stages(hg_stages: Sequence[int]) -> tuple[int, ...]:
    """Raise unless these are stages that can run on regions."""
    if isinstance(hg_stages, int) or tuple(hg_stages) not in HG_STAGES:
        raise ValueError(f"`hg_stages` must be one of {HG_STAGES}, got {hg_stages!r}.")
    return tuple(hg_stages)


def stages_of(resnet: Any) -> list[nn.Sequential]:
    """Return the four stages of one of timm's ResNets.

    Raises:
        ValueError: if it has none.
    """
    parts = ("conv1", "bn1", "act1", "maxpool", "layer1", "layer2", "layer3", "layer4")
    missing = [part for part in parts if not hasattr(resnet, part)]
    if missing:
        raise ValueError(
            f"The network must be a ResNet of timm with four stages, got {type(resnet).__name__}, which has no "
            f"{', '.join(missing)}."
        )
    return [resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4]


def out_channels(stage: nn.Module) -> int:
    """Return the channels that come out of layers that end with a batch normalisation."""
    norms: list[Any] = [part for part in stage.modules() if isinstance(part, nn.BatchNorm2d)]
    if not norms:
        raise ValueError(f"The stages must have batch normalisations, got {type(stage).__name__} without one.")
    return int(norms[-1].num_features)


def make_deformable(stage: nn.Module) -> None:
    """Make ``conv2`` of each residual block deformable, in place and with its weights."""
    for name, block in stage.named_children():
        conv = getattr(block, "conv2", None)
        if not isinstance(conv, nn.Conv2d):
            raise ValueError(f"Block {name} has no convolution `conv2` to make deformable: {type(block).__name__}.")
        setattr(block, "conv2", DeformConv2d.from_conv(conv))  # noqa: B010  (the attribute has no type)


def _timm_name(depth: int | str, stem: str | None) -> tuple[str, bool]:
    """Return timm's name, and whether it has to be given the deep stem."""
    if isinstance(depth, str):
        if stem is not None:
            raise ValueError(f"`stem` must be None when `depth` is a name of timm's, which says it, got {stem!r}.")
        return depth, False
    if not isinstance(depth, int) or depth not in DEPTHS:
        raise ValueError(f"`depth` must be one of {DEPTHS} or a name of timm's, got {depth!r}.")
    if stem not in (None, "plain", "deep"):
        raise ValueError(f"`stem` must be 'plain', 'deep' or None, got {stem!r}.")
    if stem == "plain" or (stem is None and depth < 50):
        return f"resnet{depth}", False
    return (f"resnet{depth}s", False) if depth >= 50 else (f"resnet{depth}", True)
