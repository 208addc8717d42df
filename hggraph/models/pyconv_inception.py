"""PyConvInception: Inception-ResNet-v2 with pyramids in place of its inception blocks."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from hggraph._check import check_positive
from hggraph.models.pyconv_resnet import PyConvBottleneck, initialise

__all__ = ["pyconv_inception"]

# of each stage: blocks, channels, width inside, scale of the branch, kernel sizes and groups of the pyramid
STAGES: tuple[tuple[int, int, int, float, tuple[int, ...], tuple[int, ...]], ...] = (
    (10, 320, 128, 0.17, (3, 5, 7, 9), (1, 4, 8, 16)),
    (20, 1088, 224, 0.10, (3, 5, 7), (1, 4, 8)),
    (10, 2080, 224, 0.20, (3, 5), (1, 4)),
)


class ScaledBottleneck(PyConvBottleneck):
    """1x1, a pyramid, 1x1, scaled down before they are added (Szegedy et al., AAAI 2017, Sec. 3.3)."""

    def __init__(self, channels: int, width: int, pyramid: dict[str, Any], scale: float) -> None:
        super().__init__(channels, width, channels, pyramid, stride=1, dilation=1)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum."""
        out: Tensor = self.relu(x + self.scale * self.branch(x))
        return out

    def extra_repr(self) -> str:
        """Return the scale."""
        return f"scale={self.scale}"


def pyconv_inception(num_classes: int = 1000, *, in_channels: int = 3, dropout: float = 0.0) -> nn.Module:
    """Make a PyConvInception (Duta et al. 2020, *Pyramidal Convolution*, supplement, Sec. 5).

    timm's Inception-ResNet-v2 whose 10, 20 and 10 inception blocks at 35 x 35, 17 x 17 and 8 x 8 pixels are replaced by
    blocks of 1x1, pyramid and 1x1 with 4, 3 and 2 levels. The paper gives no layout but the whole's size, 43.48 M
    parameters and 11.92 G multiply-adds at 299 x 299: the widths inside the blocks, 128, 224 and 224, are this
    package's choice, those that come nearest to both.

    Args:
        num_classes: Outputs of the classifier.
        in_channels: Channels of the images.
        dropout: Share of features dropped before the classifier in training.

    Returns:
        timm's ``InceptionResnetV2``: images ``(B, in_channels, H, W)``, at least 75 pixels wide and high, to logits
        ``(B, num_classes)``.

    Raises:
        ValueError: if an argument is not as said.
        ImportError: without timm.

    Note:
        43.54 M parameters and 11.84 G multiply-adds at 299 x 299. The paper counts 16.75 G for Inception-ResNet-v2
        itself, which timm's has 13.16 G of; by the ratio of its two figures PyConvInception would have 9.4 G.

    Example:
        >>> import torch
        >>> pyconv_inception(10).eval()(torch.rand(1, 3, 96, 96)).shape
        torch.Size([1, 10])
    """
    try:
        import timm
    except ImportError as error:
        raise ImportError(
            'PyConvInception is built on timm, which is not installed: pip install "hggraph[models]"'
        ) from error
    check_positive("num_classes", num_classes)
    check_positive("in_channels", in_channels)
    net: Any = timm.create_model(
        "inception_resnet_v2", pretrained=False, num_classes=num_classes, in_chans=in_channels, drop_rate=dropout
    )
    net.repeat, net.repeat_1, net.repeat_2 = (_stage(*stage) for stage in STAGES)
    net.block8 = nn.Identity()
    return net


def _stage(
    count: int, channels: int, width: int, scale: float, kernels: tuple[int, ...], groups: tuple[int, ...]
) -> nn.Sequential:
    pyramid = {"kernel_sizes": kernels, "groups": groups}
    blocks = nn.Sequential(*(ScaledBottleneck(channels, width, pyramid, scale) for _ in range(count)))
    initialise(blocks)
    return blocks
