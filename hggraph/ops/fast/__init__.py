"""Regions of photos on a CPU: each step of the clustering as compiled loops over stripes of blocks (needs Numba).

Nothing here is imported before its first use, and nothing is compiled before its first call; compiled code is kept
in Numba's cache. Every function takes one image, runs on torch's number of threads and gives the same bits on any
number of them.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from hggraph.ops.fast._assign import assign as assign
    from hggraph.ops.fast._assign import labels as labels
    from hggraph.ops.fast._clean import clean_edges as clean_edges
    from hggraph.ops.fast._connect import connect as connect
    from hggraph.ops.fast._edges import edges_of_labels as edges_of_labels
    from hggraph.ops.fast._edges import edges_of_weights as edges_of_weights
    from hggraph.ops.fast._lab import lab as lab
    from hggraph.ops.fast._lists import nearest_regions as nearest_regions
    from hggraph.ops.fast._pool import pool as pool
    from hggraph.ops.fast._pool import pool_labels as pool_labels
    from hggraph.ops.fast._seeds import density_seeds as density_seeds
    from hggraph.ops.fast._strongest import give as give
    from hggraph.ops.fast._strongest import strongest as strongest
    from hggraph.ops.fast._update import slic as slic
from hggraph.ops.fast.plain_connect import plain_connect as plain_connect

_HOME = {
    "assign": "_assign",
    "clean_edges": "_clean",
    "connect": "_connect",
    "density_seeds": "_seeds",
    "edges_of_labels": "_edges",
    "edges_of_weights": "_edges",
    "give": "_strongest",
    "lab": "_lab",
    "labels": "_assign",
    "nearest_regions": "_lists",
    "pool": "_pool",
    "pool_labels": "_pool",
    "slic": "_update",
    "strongest": "_strongest",
}

__all__ = ["available", "each", "plain_connect", "takes", *_HOME]


@functools.cache
def _found() -> bool:
    return importlib.util.find_spec("numba") is not None


def available() -> bool:
    """Say whether Numba can be imported, and with it every function of this package.

    Example:
        >>> available() in (True, False)
        True
    """
    return _found()


def takes(*tensors: Tensor) -> bool:
    """Say whether these tensors are for this package: float32 on a CPU, without a gradient, not being compiled.

    Example:
        >>> import torch
        >>> takes(torch.zeros(1, dtype=torch.float64))
        False
    """
    if torch.compiler.is_compiling() or not available():
        return False
    needed = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    return not needed and all(
        x.dtype == torch.float32 and type(x) is Tensor and x.device.type == "cpu" for x in tensors
    )


def each(function: Callable[..., Tensor], *batches: Tensor) -> Tensor:
    """Return what a function of single images gives for each image of the batches, at least one, in one tensor.

    Example:
        >>> each(lambda x: x + 1, torch.zeros(2, 3)).shape
        torch.Size([2, 3])
    """
    found = [function(*images) for images in zip(*batches, strict=True)]
    return found[0].unsqueeze(0) if len(found) == 1 else torch.stack(found)


def __getattr__(name: str) -> Any:
    """Import a function at its first use: Numba takes half a second, and may not be there."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if not available():
        raise ImportError(f"hggraph.ops.fast.{name} needs Numba: pip install 'hggraph[fast]'.")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
