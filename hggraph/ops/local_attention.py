"""Local attention: softmax attention of each pixel over the displacements of a stencil."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hggraph._check import check_dtype, check_ndim, check_one_device
from hggraph.ops._distance import compute_dtype
from hggraph.ops._library import autocast, kernel, operator
from hggraph.ops._local_attention import affinity, attend, attend_backward, attend_opened
from hggraph.ops._window import check_window, flat_offsets, readers

__all__ = ["local_affinity", "local_attention"]


def local_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Sequence[Sequence[int]],
    *,
    scale: float | None = None,
    border: str = "zero",
    bias: Tensor | None = None,
) -> Tensor:
    """Attend from each pixel to its neighbours at K displacements (GALD, Li et al. 2021, Sec. III-B).

    ``out_i = sum_t softmax_t(scale q_i . k_{i + offset_t} + bias_t) v_{i + offset_t}``. Any stencil is possible:
    even-sized, dilated, irregular, without a centre. Heads are folded into the batch.

    Args:
        q: Queries, shape ``(B, C, H, W)``, floating point, C >= 1, any strides (channels_last is not copied).
        k: Keys, the shape of `q`.
        v: Values, shape ``(B, D, H, W)``.
        offsets: K displacements (dy, dx) in pixels, source minus target, K >= 1.
        scale: Factor of the products; ``C ** -0.5`` when None.
        border: What a neighbour outside the image is. ``"zero"``: a zero vector that takes part in the softmax, its
            logit being the bias; equals attention on zero-padded ``unfold``. ``"mask"``: left out; a pixel
            whose neighbours are all outside gives 0. ``"shift"``: there is none, as near the border the whole window
            moves inward, by multiples of its dilation, until it lies in the image (NATTEN's rule).
        bias: Relative position bias, logits, shape ``(K,)`` or ``(B, K)``. A tap keeps its bias where ``"shift"``
            moves it.

    Returns:
        Shape ``(B, D, H, W)``, dtype and memory format of `v`; an empty batch or image gives an empty result.
        Differentiable in `q`, `k`, `v` and `bias`. Logits, softmax and sums are float32 (float64 for float64), in
        half precision and under autocast too.

    Raises:
        ValueError: if shapes disagree, `offsets` is empty or `border` unknown, or the window times its dilation does
            not fit an image with ``border="shift"``.
        TypeError: if a tensor is not floating point.

    Note:
        O(B P K (C + D)) time for P = H W. Keys and values are read where they lie: forward keeps B P K numbers and at
        most a copy, by pixel, of either, backward of both. Deterministic.

    Example:
        >>> q = k = torch.zeros(1, 1, 1, 3)
        >>> v = torch.tensor([[[[3.0, 6.0, 9.0]]]])
        >>> local_attention(q, k, v, [(0, -1), (0, 0), (0, 1)])
        tensor([[[[3., 6., 5.]]]])
        >>> local_attention(q, k, v, [(0, -1), (0, 0), (0, 1)], border="shift")
        tensor([[[[6., 6., 6.]]]])
    """
    flat = flat_offsets(offsets)
    _check_tensors(q, k, v, bias, len(flat) // 2)
    check_window(q.shape[2:], flat, border)
    q, k, v = autocast(q, k, v)
    scale = q.shape[1] ** -0.5 if scale is None else float(scale)
    out, _ = torch.ops.hggraph.local_attention(q, k, v, bias, flat, scale, border)
    return out


def local_affinity(
    q: Tensor,
    k: Tensor,
    offsets: Sequence[Sequence[int]],
    *,
    scale: float | None = None,
    border: str = "zero",
    bias: Tensor | None = None,
) -> Tensor:
    """Return the weights with which `local_attention` sums its neighbours' values: the local affinity map.

    Args:
        q: As for `local_attention`, and so are the other arguments and errors.
        k: Keys.
        offsets: K displacements.
        scale: Factor of the products.
        border: What a neighbour outside the image is; with ``"zero"`` it has a weight too.
        bias: Relative position bias.

    Returns:
        Shape ``(B, K, H, W)``, float32 (float64 for float64); sums to 1 over K. Differentiable.

    Note:
        For pictures: O(B P K C) time, tap by tap, and the B P K numbers themselves.

    Example:
        >>> q = k = torch.zeros(1, 1, 1, 3)
        >>> local_affinity(q, k, [(0, -1), (0, 0)], border="mask")[0, :, 0]
        tensor([[0.0000, 0.5000, 0.5000],
                [1.0000, 0.5000, 0.5000]])
    """
    flat = flat_offsets(offsets)
    _check_tensors(q, k, k, bias, len(flat) // 2)
    check_window(q.shape[2:], flat, border)
    return affinity(q, k, bias, flat, q.shape[1] ** -0.5 if scale is None else float(scale), border)


def local_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    offsets: Sequence[Sequence[int]],
    scale: float,
    border: str,
) -> Tensor:
    """Return `local_attention` pixel by pixel and tap by tap, as the equation says it."""
    (batch, channels, height, width), depth = q.shape, v.shape[1]
    rows = []
    for b in range(batch):
        for y in range(height):
            for x in range(width):
                move_y = _moved(y, [dy for dy, _ in offsets], height) if border == "shift" else 0
                move_x = _moved(x, [dx for _, dx in offsets], width) if border == "shift" else 0
                logits, values = [], []
                for t, (dy, dx) in enumerate(offsets):
                    y_t, x_t = y + dy + move_y, x + dx + move_x
                    inside = 0 <= y_t < height and 0 <= x_t < width
                    if border == "mask" and not inside:
                        continue
                    logit = scale * q[b, :, y, x] @ (k[b, :, y_t, x_t] if inside else k.new_zeros(channels))
                    logits.append(logit if bias is None else logit + bias.expand(batch, -1)[b, t])
                    values.append(v[b, :, y_t, x_t] if inside else v.new_zeros(depth))
                rows.append(torch.stack(logits).softmax(0) @ torch.stack(values) if logits else v.new_zeros(depth))
    return torch.stack(rows).view(batch, height, width, depth).permute(0, 3, 1, 2)


def _moved(position: int, offsets: Sequence[int], length: int) -> int:
    """Return how far a window moves to lie in [0, length), in steps of its dilation."""
    taps = sorted(set(offsets))
    steps = [step for step in range(1, length + 1) if all((tap - taps[0]) % step == 0 for tap in taps)]
    step = max(steps) if len(taps) > 1 else 1
    move = 0
    while position + taps[0] + move < 0:
        move += step
    while position + taps[-1] + move > length - 1:
        move -= step
    return move


def _check_tensors(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, taps: int) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        check_ndim(name, x, 4, shape="(B, D, H, W)" if name == "v" else "(B, C, H, W)")
    if bias is not None:
        check_ndim("bias", bias, 1, 2, shape="(K,) or (B, K)")
    check_one_device(q=q, k=k, v=v, bias=bias)
    for name, given in (("q", q), ("k", k), ("v", v), ("bias", bias)):
        if given is not None:
            check_dtype(name, given)
    if k.shape != q.shape or q.shape[1] == 0:
        raise ValueError(
            f"`k` must have the shape of `q`, at least one channel, got {tuple(k.shape)} and {tuple(q.shape)}."
        )
    if v.shape[0] != q.shape[0] or v.shape[2:] != q.shape[2:]:
        raise ValueError(f"`v` must have shape (B, D, H, W) like `q` {tuple(q.shape)}, got {tuple(v.shape)}.")
    if bias is not None and bias.shape not in ((taps,), (q.shape[0], taps)):
        raise ValueError(f"`bias` must have shape ({taps},) or ({q.shape[0]}, {taps}), got {tuple(bias.shape)}.")


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, bias, ctx.offsets, ctx.scale, ctx.border = inputs
    ctx.save_for_backward(q, k, v, bias, *output)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:
    bias = ctx.saved_tensors[3]
    *grads, grad_bias = torch.ops.hggraph.local_attention_backward(
        grad, *ctx.saved_tensors, ctx.offsets, ctx.scale, ctx.border
    )
    return *grads, None if bias is None else grad_bias.to(bias.dtype), None, None, None


def _fake(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, offsets: Any, scale: float, border: str
) -> tuple[Tensor, Tensor]:
    batch, _, height, width = q.shape
    return torch.empty_like(v), q.new_empty(batch, height, width, dtype=compute_dtype(q))


@operator(
    "local_attention",
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
    flops=lambda q, k, v, bias, offsets, *_, **__: 2 * q[0] * q[2] * q[3] * (len(offsets) // 2) * (q[1] + v[1]),
    opened=attend_opened,
)
def _local_attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, offsets: list[int], scale: float, border: str
) -> tuple[Tensor, Tensor]:
    if (triton := kernel("local_attention", q, k, v, bias)) is not None:
        return triton.local_attention(q, k, v, bias, offsets, scale, border)
    return attend(q, k, v, bias, offsets, scale, border)


def _backward_fake(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_bias = q.new_empty((0,) if bias is None else bias.shape, dtype=compute_dtype(q))
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), grad_bias


@operator(
    "local_attention_backward",
    fake=_backward_fake,
    # logits again, and the gradients of weights, queries, keys and values
    flops=lambda grad, q, k, v, bias, out, log_sum, offsets, *_, **__: (
        2 * q[0] * q[2] * q[3] * (len(offsets) // 2) * (3 * q[1] + 2 * v[1])
    ),
)
def _local_attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    out: Tensor,
    log_sum: Tensor,
    offsets: list[int],
    scale: float,
    border: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if (triton := kernel("local_attention", grad, q, k, v, bias)) is not None:
        inverse = readers(q.shape[2:], offsets, border, q.device) if border == "shift" else None
        return triton.local_attention_backward(grad, q, k, v, bias, out, log_sum, offsets, scale, border, inverse)
    return attend_backward(grad, q, k, v, bias, offsets, scale, border)
