"""Relabelling: what a coarser level has done, finer ones need not learn."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hggraph._check import check_ndim
from hggraph.schemes.specialize.fuse import check_threshold, children

__all__ = ["IGNORED", "RULES", "check_rule", "relabel"]

RULES = ("naive", "ground_truth", "true_positives")
IGNORED = 255  # of unity, whose labels are 0 and 1 whatever the classes are


def relabel(
    pyramid: Sequence[tuple[Tensor, Tensor]],
    predicted: Sequence[Tensor] | None = None,
    *,
    rule: str = "true_positives",
    threshold: float = 0.9,
    ignore_index: int = 255,
) -> list[tuple[Tensor, Tensor]]:
    """Ignore the cells that a coarser level has done (Hsiao et al. 2021, *Specialize and Fuse*, Sec. 3.2, Table 7).

    Args:
        pyramid: What `unity_pyramid` returns, coarse to fine.
        predicted: Probabilities of unity of all levels but the finest, each ``(B, h, w)``: for the rule
            ``"true_positives"``, and looked at by it alone.
        rule: Which cells have done their descendants: ``"naive"`` none, ``"ground_truth"`` unity-cells (the paper's
            "simple fix"), ``"true_positives"`` unity-cells that are predicted as such (the paper's final rule).
        threshold: A cell is predicted as a unity-cell if its probability reaches it; the paper does not say which is
            used in training, and the default is that of inference. As in `fuse`.
        ignore_index: The label that does not count.

    Returns:
        For each level what its outputs are compared with: unity ``(B, h, w)`` int64, 1, 0 or, ignored, 255, and labels
        ``(B, h, w)``. Descendants of done cells are ignored in both, at all finer levels, and so is the unity of cells
        without labelled pixels.

    Raises:
        ValueError: if an argument is not as said, or shapes do not fit.

    Note:
        O(cells). No gradient reaches `predicted`; nothing waits for the device; deterministic.

    Example:
        >>> from hggraph.schemes.specialize import unity_pyramid
        >>> pyramid = unity_pyramid(torch.tensor([[[1, 1, 2, 3], [1, 1, 2, 2]]]), (2, 1))
        >>> for unity, label in relabel(pyramid, [torch.tensor([[[0.95, 0.95]]])]):
        ...     print(unity.tolist(), label.tolist())
        [[[1, 0]]] [[[1, 255]]]
        [[[255, 255, 1, 1], [255, 255, 1, 1]]] [[[255, 255, 2, 3], [255, 255, 2, 2]]]
    """
    check_rule(rule)
    check_threshold(threshold)
    if rule == "true_positives":
        _check_predicted(pyramid, predicted)
    done: Tensor | None = None
    out: list[tuple[Tensor, Tensor]] = []
    for level, (unity, label) in enumerate(pyramid):
        void = unity & (label == ignore_index)
        of_unity = torch.where(void, IGNORED, unity.long())
        if done is not None:
            label = torch.where(done, ignore_index, label)
            of_unity = torch.where(done, IGNORED, of_unity)
        out.append((of_unity, label))
        if level + 1 == len(pyramid) or rule == "naive":
            continue
        now = unity & ~void
        if rule == "true_positives":
            assert predicted is not None
            now = now & (predicted[level] >= threshold)
        done = children(now if done is None else now | done)
    return out


def check_rule(rule: str) -> None:
    """Raise unless this is a rule."""
    if rule not in RULES:
        raise ValueError(f"`rule` must be one of {RULES}, got {rule!r}.")


def _check_predicted(pyramid: Sequence[tuple[Tensor, Tensor]], predicted: Sequence[Tensor] | None) -> None:
    if predicted is None or len(predicted) != len(pyramid) - 1:
        got = "None" if predicted is None else f"{len(predicted)}"
        raise ValueError(
            f"`predicted` must hold probabilities of all of {len(pyramid)} levels but the finest, for the rule "
            f"'true_positives', got {got}. The rule 'ground_truth' needs none."
        )
    for level, (u, (unity, _)) in enumerate(zip(predicted, pyramid[:-1], strict=True)):
        check_ndim(f"predicted[{level}]", u, 3, shape="(B, h, w)")
        if u.shape != unity.shape:
            raise ValueError(
                f"`predicted[{level}]` must have the shape {tuple(unity.shape)} of its level, got {tuple(u.shape)}."
            )
