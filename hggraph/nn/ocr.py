"""Object-contextual representations: each pixel attends to the classes it may belong to."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hggraph._check import check_features, check_positive
from hggraph.nn._conv import check_statistics, conv_norm_relu
from hggraph.ops._distance import compute_dtype
from hggraph.ops._library import full_precision

__all__ = ["OCR", "ObjectAttention", "spatial_gather"]


class OCR(nn.Module):
    r"""Gather one vector per class, and let each pixel attend to them (OCR, Yuan et al. 2020).

    With coarse logits :math:`c_{ki}` of class k at pixel i and pixel features :math:`x_i`,

    .. math::
        f_k = \sum_i \mathrm{softmax}_i(c_{ki})\, x_i, \qquad
        y_i = \rho\Bigl(\sum_k \mathrm{softmax}_k\bigl(d^{-1/2} \phi(x_i) \cdot \psi(f_k)\bigr)\, \delta(f_k)\Bigr)

    and the output is a 1x1 convolution over ``concat(y, x)``. Layers, widths and normalisations are those of the
    published code, HRNet-OCR. The classifier is the network's.

    Args:
        in_channels: Channels of the input.
        num_classes: Classes of the coarse logits, and so of the vectors.
        channels: Channels of the output.
        key_channels: Channels d of queries, keys and values.
        dropout: Share of channels dropped at the end in training.

    Shapes:
        - **input:** map ``(B, in_channels, H, W)``
        - **output:** map ``(B, channels, H, W)`` and coarse logits ``(B, num_classes, H, W)``; an empty batch gives
          empty ones

    Raises:
        ValueError: if a number is not as said; in a call, if the map is empty, or is one image with one class in
            training: batch normalisation has one value per channel of its vector.

    Note:
        O(H W in_channels (in_channels + 9 channels)), the coarse head and the 3x3; attention, with a key per class,
        costs next to none. Deterministic on a CPU; the gradient of fused attention adds in any order on a GPU.

    Example:
        >>> features, coarse = OCR(16, 3, 8, key_channels=4)(torch.rand(2, 16, 5, 6))
        >>> features.shape, coarse.shape
        (torch.Size([2, 8, 5, 6]), torch.Size([2, 3, 5, 6]))
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        channels: int = 512,
        key_channels: int = 256,
        dropout: float = 0.05,
    ) -> None:
        super().__init__()
        names = {"in_channels": in_channels, "num_classes": num_classes, "channels": channels}
        for name, value in {**names, "key_channels": key_channels}.items():
            check_positive(name, value)
        self.in_channels = in_channels
        self.coarse = nn.Sequential(
            nn.Conv2d(in_channels, in_channels, 1),
            nn.BatchNorm2d(in_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(in_channels, num_classes, 1),
        )
        self.pixels = nn.Sequential(
            nn.Conv2d(in_channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
        )
        self.attention = ObjectAttention(channels, key_channels)
        self.project = conv_norm_relu(2 * channels, channels)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features and the coarse logits; see the class for shapes."""
        check_features("x", x)
        if x.shape[1] != self.in_channels:
            raise ValueError(f"`x` must have {self.in_channels} channels, got shape {tuple(x.shape)}.")
        coarse = self.coarse(x)
        pixels = self.pixels(x)
        context = self.attention(pixels, spatial_gather(pixels, coarse))
        return self.dropout(self.project(torch.cat([context, pixels], 1))), coarse


class ObjectAttention(nn.Module):
    """Attend from each pixel to the vectors of the classes, scaled by the root of the keys' width (OCR Eq. 3).

    Args:
        channels: Channels of pixels, vectors and output.
        key_channels: Channels of queries, keys and values.

    Shapes:
        - **pixels:** map ``(B, channels, H, W)``
        - **objects:** vectors ``(B, channels, K)``
        - **output:** map ``(B, channels, H, W)``

    Example:
        >>> ObjectAttention(8, 4)(torch.rand(2, 8, 5, 6), torch.rand(2, 8, 3)).shape
        torch.Size([2, 8, 5, 6])
    """

    def __init__(self, channels: int, key_channels: int) -> None:
        super().__init__()
        self.query = nn.Sequential(conv_norm_relu(channels, key_channels), conv_norm_relu(key_channels, key_channels))
        self.key = nn.Sequential(conv_norm_relu(channels, key_channels), conv_norm_relu(key_channels, key_channels))
        self.value = conv_norm_relu(channels, key_channels)
        self.context = conv_norm_relu(key_channels, channels)

    def forward(self, pixels: Tensor, objects: Tensor) -> Tensor:
        """Return each pixel's context; see the class for shapes."""
        column = objects.unsqueeze(3)  # (B, C, K, 1): 1x1 convolutions see the classes as pixels
        check_statistics(column, self.value[1])
        maps = self.query(pixels), self.key(column), self.value(column)
        query, key, value = (y.flatten(2).mT.unsqueeze(1) for y in maps)  # (B, 1, H W or K, key_channels)
        attended = F.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.context(attended.squeeze(1).mT.unflatten(2, (pixels.shape[2], pixels.shape[3])))
        return out


def spatial_gather(pixels: Tensor, logits: Tensor) -> Tensor:
    """Return each class's mean of the pixels, weighted by a softmax of its logits over the pixels (OCR Eq. 2).

    Args:
        pixels: Features, shape ``(B, C, H, W)``.
        logits: Shape ``(B, K, H, W)``.

    Returns:
        Vectors ``(B, C, K)``, computed in float32 in half precision and under autocast too: over a large image weights
        are smaller than half precision has numbers for.

    Example:
        >>> spatial_gather(torch.ones(2, 8, 5, 6), torch.rand(2, 3, 5, 6)).shape
        torch.Size([2, 8, 3])
    """
    dtype = compute_dtype(pixels)
    weights = logits.flatten(2).to(dtype).softmax(2)
    with full_precision(pixels):
        return (pixels.flatten(2).to(dtype) @ weights.mT).to(pixels.dtype)
