"""From what a network confuses, or from features of classes, to groupings of every size."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from torch import Tensor

from hggraph._check import check_ndim
from hggraph.schemes.hs3.grouping import Grouping, check_confusion

__all__ = ["constant_ratio", "kmeans_groupings", "spectral_groupings"]

MANY = 60  # classes beyond which k-means starts once instead of ten times: all sizes of 150 would take 20 s


def spectral_groupings(
    confusion: Tensor,
    sizes: Iterable[int] | None = None,
    *,
    normalize: Literal["none", "rows"] = "rows",
    absent: Literal["error", "own"] = "error",
    seed: int = 0,
) -> dict[int, Grouping]:
    r"""Merge classes that are confused with one another, by spectral clustering (HS3 Sec. 3.1.1).

    The affinity of two classes is how often one is taken for the other,

    .. math::
        A = (C + C^T) / 2

    and scikit-learn's k-means groups the rows of the first n eigenvectors of its normalised Laplacian, as
    ``SpectralClustering`` does; all sizes share one decomposition.

    Args:
        confusion: Counts C, shape ``(K, K)``, row: the class, column: the prediction.
        sizes: Numbers of groups, each from 1 to K; None: all from 2 to K.
        normalize: ``"rows"`` divides each class's counts by its pixels first, so that rare classes weigh as much as
            others; ``"none"`` takes the counts, by which rare classes stay alone and frequent ones are merged. The
            paper does not say which it does.
        absent: What to do about classes without pixels (rows of zeros): ``"error"``, or ``"own"``: each of them is a
            group of its own, which counts as one of the n.
        seed: Of k-means.

    Returns:
        The grouping of each size.

    Raises:
        ValueError: if `confusion` is none, a class has no pixels, or a size is not from 1 to K.
        ImportError: without scikit-learn.

    Note:
        150 classes, all sizes: 4 s on an idle CPU. Deterministic for a seed.

    Example:
        >>> import torch
        >>> confusion = torch.tensor([[9, 5, 0, 0], [4, 9, 0, 1], [0, 0, 9, 6], [0, 0, 7, 9]])
        >>> spectral_groupings(confusion, [2])[2].groups
        ((0, 1), (2, 3))
    """
    values = check_confusion(confusion)
    classes = len(values)
    if normalize not in ("none", "rows") or absent not in ("error", "own"):
        raise ValueError(
            f"`normalize` must be 'none' or 'rows', `absent` 'error' or 'own', got {normalize!r}, {absent!r}."
        )
    wanted = _check_sizes(sizes, classes)
    empty = (values.sum(1) == 0).nonzero().flatten().tolist()
    if empty and absent == "error":
        raise ValueError(
            f"Classes {empty} never occur (their rows of `confusion` are zero), so nothing says what they are confused "
            f"with. Analyse more images, or keep them apart with absent='own'."
        )
    present = [number for number in range(classes) if number not in empty]
    values = values[present][:, present]
    if normalize == "rows":
        values = values / values.sum(1, keepdim=True).clamp(min=1)
    embedding = _embedding(((values + values.T) / 2).numpy())
    found = {}
    for size in wanted:
        rest = size - len(empty)
        if not min(1, len(present)) <= rest <= len(present):
            raise ValueError(f"{size} groups are too few for {len(empty)} classes that never occur, each in its own.")
        labels = _kmeans(embedding[:, :rest], rest, seed)
        groups = Grouping.of_labels(labels).groups if labels else ()
        found[size] = Grouping([[present[i] for i in group] for group in groups] + [[number] for number in empty])
    return found


def kmeans_groupings(features: Tensor, sizes: Iterable[int] | None = None, *, seed: int = 0) -> dict[int, Grouping]:
    """Merge classes with similar features, by k-means (HS3 Sec. 3.1.3).

    Args:
        features: A vector for each class, such as the mean feature of its pixels, shape ``(K, D)``.
        sizes: Numbers of groups, each from 1 to K; None: all from 2 to K.
        seed: Of k-means.

    Returns:
        The grouping of each size.

    Raises:
        ValueError: if there are not as many different vectors as groups, one is not finite, or a size is not from 1
            to K.
        ImportError: without scikit-learn.

    Note:
        Deterministic for a seed.

    Example:
        >>> import torch
        >>> kmeans_groupings(torch.tensor([[0.0], [5.0], [0.2], [5.1]]), [2])[2].groups
        ((0, 2), (1, 3))
    """
    check_ndim("features", features, 2, shape="(K, D)")
    if len(features) < 2 or not features.isfinite().all():
        raise ValueError(f"`features` must be finite vectors of at least 2 classes, got shape {tuple(features.shape)}.")
    wanted = _check_sizes(sizes, len(features))
    different = len(features.unique(dim=0))
    if max(wanted) > different:
        raise ValueError(f"`features` must have {max(wanted)} different vectors for as many groups, got {different}.")
    points = features.detach().cpu().double().numpy()
    return {size: Grouping.of_labels(_kmeans(points, size, seed)) for size in wanted}


def constant_ratio(num_classes: int, num_taps: int, ratio: float = 0.5) -> tuple[int, ...]:
    """Return how many classes each tap has when each has a share of those of the next one (HS3 Sec. 3.1.3).

    Args:
        num_classes: Classes of the output, at least 2.
        num_taps: Taps, from the first to the last.
        ratio: Share, in (0, 1].

    Example:
        >>> constant_ratio(40, 2)
        (10, 20)
    """
    if num_classes < 2 or num_taps < 1 or not 0 < ratio <= 1:
        raise ValueError(
            f"`num_classes` must be >= 2, `num_taps` >= 1 and `ratio` in (0, 1], got {num_classes}, {num_taps} and "
            f"{ratio}."
        )
    return tuple(max(2, round(num_classes * ratio**away)) for away in range(num_taps, 0, -1))


def _check_sizes(sizes: Iterable[int] | None, classes: int) -> Sequence[int]:
    wanted = list(range(2, classes + 1) if sizes is None else sizes)
    wrong = [size for size in wanted if not 1 <= size <= classes]
    if not wanted or wrong:
        raise ValueError(f"`sizes` must be numbers of groups from 1 to {classes}, the classes, got {wrong or wanted}.")
    return wanted


def _embedding(affinity: np.ndarray) -> np.ndarray:
    """Return the eigenvectors of the normalised Laplacian, smallest eigenvalues first, over the root of the degree."""
    if len(affinity) == 0:
        return affinity
    affinity = affinity.copy()
    np.fill_diagonal(affinity, 0)  # being right connects a class with no other
    # classes that are never confused with others are connected too, weaker than any two that are
    affinity += 1e-9 * max(affinity.max(), 1.0)
    np.fill_diagonal(affinity, 0)
    root = np.sqrt(np.maximum(affinity.sum(1), 1e-300))
    laplacian = np.eye(len(affinity)) - affinity / root[:, None] / root[None, :]
    vectors = np.linalg.eigh(laplacian)[1] / root[:, None]
    # the sign of an eigenvector is anyone's choice
    result: np.ndarray = vectors * np.where(vectors[np.abs(vectors).argmax(0), np.arange(len(vectors))] < 0, -1, 1)
    return result


def _kmeans(points: np.ndarray, size: int, seed: int) -> list[int]:
    """Return a label for each point; every label from 0 to size - 1 occurs."""
    if size == len(points):
        return list(range(size))
    from sklearn.cluster import KMeans

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Number of distinct clusters")  # points that are equal: seen to below
        labels: list[int] = (
            KMeans(size, n_init=10 if len(points) <= MANY else 1, random_state=seed).fit_predict(points).tolist()
        )
    while len(set(labels)) < size:  # the last of the largest group gets one of its own
        label, _ = Counter(labels).most_common(1)[0]
        labels[len(labels) - 1 - labels[::-1].index(label)] = max(labels) + 1
    return labels
