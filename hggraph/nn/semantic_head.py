"""Semantic head: logits at every level of a pyramid, finer ones with the context of the coarser."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hggraph._check import check_features, check_positive
from hggraph.nn._conv import conv_norm_relu
from hggraph.nn.asymmetric_non_local import AsymmetricNonLocal
from hggraph.nn.context_module import (
    BINS,
    ContextAggregation,
    ContextUpdate,
    check_bins,
    pyramid_pool,
)
from hggraph.nn.unity_head import check_divisible

__all__ = ["CONTEXTS", "SemanticHead"]

CONTEXTS = ("none", "anl", "multi_anl", "coarse_to_fine")


class SemanticHead(nn.Module):
    r"""Predict classes at every level of a pyramid (Hsiao et al. 2021, *Specialize and Fuse*, Sec. 4.2, Table 6).

    :math:`X^L` is a linear 1x1 convolution of the features, :math:`X^l` its mean over the cells of level l (Eq. 3),
    refined to :math:`X'^l` by the context, and the logits are 1x1, normalisation, ReLU and 1x1 of it (Eq. 7).

    Args:
        in_channels: Channels of the features.
        num_classes: Channels of the logits.
        levels: Levels of the pyramid, at least 1.
        channels: Channels of :math:`X`.
        key_channels: Channels of queries and keys.
        context: ``"coarse_to_fine"``, the paper's: `ContextAggregation` at each level, `ContextUpdate` between them
            (Eq. 4 to 6); ``"none"``, the plain pooled head; ``"anl"``, an `AsymmetricNonLocal` before pooling;
            ``"multi_anl"``, one at each level.
        bins: Cells per side of each grid of the context.

    Shapes:
        - **input:** map ``(B, in_channels, H, W)``, sides divisible by ``2 ** (levels - 1)``
        - **output:** coarse to fine, logits ``(B, num_classes, H / k, W / k)`` with k from ``2 ** (levels - 1)`` to 1

    Raises:
        ValueError: if an argument is not as said; in a call, if the map is empty or its sides are not divisible.

    Note:
        Averaging and linear convolutions change places, so the features are pooled and :math:`X^L` itself is never
        computed: each level has one convolution from `in_channels` to `channels`. The same numbers up to rounding. As
        published, with 720 channels and 150 classes, 19.8 10^9 multiply-adds at 128 x 128, 18.8 composed; as
        written in the paper 30. Pooling's gradient, and with ``"anl"`` fused
        attention's, add in any order on a GPU.

    Example:
        >>> head = SemanticHead(16, 5, levels=3, channels=8, key_channels=4).eval()
        >>> [tuple(y.shape) for y in head(torch.rand(2, 16, 8, 12))]
        [(2, 5, 2, 3), (2, 5, 4, 6), (2, 5, 8, 12)]
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        levels: int = 4,
        *,
        channels: int = 512,
        key_channels: int = 256,
        context: str = "coarse_to_fine",
        bins: Sequence[int] = BINS,
    ) -> None:
        super().__init__()
        names = {"in_channels": in_channels, "num_classes": num_classes, "levels": levels, "channels": channels}
        for name, value in names.items():
            check_positive(name, value)
        if context not in CONTEXTS:
            raise ValueError(f"`context` must be one of {CONTEXTS}, got {context!r}.")
        self.in_channels = in_channels
        self.levels = levels
        self.context = context
        self.bins = check_bins(bins)
        self.composed = False
        self.project = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.aggregations, self.updates, self.non_locals = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        if context == "coarse_to_fine":
            self.aggregations.extend(ContextAggregation(channels, key_channels) for _ in range(levels))
            self.updates.extend(ContextUpdate(channels, bins) for _ in range(levels - 1))
        elif context != "none":
            number = 1 if context == "anl" else levels
            self.non_locals.extend(
                AsymmetricNonLocal(channels, key_channels=key_channels, bins=bins) for _ in range(number)
            )
        self.classify = nn.ModuleList(
            nn.Sequential(*conv_norm_relu(channels, channels), nn.Conv2d(channels, num_classes, 1))
            for _ in range(levels)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the logits, coarse to fine; see the class for shapes."""
        check_features("x", x)
        check_divisible(x, self.in_channels, self.levels)
        if self.context == "coarse_to_fine":
            refined = self._with_context(x)
        elif self.context == "none":
            return [
                self._project_and_classify(y, classify)
                for y, classify in zip(self._pooled(x), self.classify, strict=True)
            ]
        elif self.context == "anl":
            refined = self._pooled(self.non_locals[0](self.project(x)))
        else:
            refined = [anl(self.project(y)) for anl, y in zip(self.non_locals, self._pooled(x), strict=True)]
        return [classify(y) for classify, y in zip(self.classify, refined, strict=True)]

    @torch.no_grad()
    def compose(self) -> None:
        """Multiply weights between which nothing non-linear stands, in place: the same function, for inference."""
        if self.composed:
            return
        if self.context == "coarse_to_fine":  # the projection stays for the first context
            live: list[Any] = list(self.aggregations)
            self.aggregations = nn.ModuleList(part.composed(self.project) for part in live)
        elif self.context == "none":
            heads: list[Any] = list(self.classify)
            before = self.project.weight.flatten(1).double()
            for head in heads:
                head[0] = _with_weight(head[0], head[0].weight.flatten(1).double() @ before)
            del self.project
        else:
            return
        self.composed = True

    def _pooled(self, x: Tensor) -> list[Tensor]:
        """Return the means over the cells of each level, coarse to fine."""
        levels = [x]
        for _ in range(self.levels - 1):
            levels.append(F.avg_pool2d(levels[-1], 2))
        return levels[::-1]

    def _with_context(self, x: Tensor) -> list[Tensor]:
        """Return each level of the features, refined (Eq. 4 to 6)."""
        before = () if self.composed else (self.project,)  # a module: counting operations hooks into tensors' gradients
        context = self.project(pyramid_pool(x, self.bins))
        refined: list[Tensor] = []
        for i, (level, aggregate) in enumerate(zip(self._pooled(x), self.aggregations, strict=True)):
            refined.append(aggregate(level, context, *before))
            if i < len(self.updates):  # nothing reads the finest level's
                context = self.updates[i](refined[-1], context)
        return refined

    def _project_and_classify(self, x: Tensor, classify: Any) -> Tensor:
        """Return logits of a level of the features, the projection being part of the first convolution."""
        first, *after = classify
        if self.composed:
            y = first(x)
        else:
            weight = first.weight.flatten(1) @ self.project.weight.flatten(1)
            y = F.conv2d(x, weight[..., None, None], first.bias)
        for layer in after:
            y = layer(y)
        return y


def _with_weight(conv: nn.Conv2d, weight: Tensor) -> nn.Conv2d:
    """Return a 1x1 convolution with another one's bias and this weight ``(out_channels, in_channels)``."""
    out = nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=conv.bias is not None).to(conv.weight)
    out.weight.copy_(weight[..., None, None])
    if out.bias is not None and conv.bias is not None:
        out.bias.copy_(conv.bias)
    return out
