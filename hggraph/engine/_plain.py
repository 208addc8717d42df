"""What a checkpoint may hold: values that are read back without running code."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["leaves", "plain", "refused"]

HARMLESS = (bool, int, float, complex, str, bytes, bytearray, Tensor, torch.dtype, torch.device, torch.Size)


def plain(value: Any) -> Any:
    """Return a value with text, numbers and dicts for paths, enumerations, numpy's numbers and other mappings.

    Tensors and what is plain already stay the same objects; so does what nothing can be made of.

    Example:
        >>> from pathlib import Path
        >>> plain({"folder": Path("runs"), "rate": np.float64(0.5), "sizes": (1, 2)})
        {'folder': 'runs', 'rate': 0.5, 'sizes': (1, 2)}
    """
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, PurePath) or (isinstance(value, str) and type(value) is not str):
        return str(value)
    if isinstance(value, Mapping):
        items = [(plain(key), plain(inner)) for key, inner in value.items()]
        changed = any(new[0] is not key or new[1] is not value[key] for new, key in zip(items, value, strict=True))
        if not changed and type(value) in (dict, OrderedDict, Counter):
            return value
        if isinstance(value, OrderedDict):
            ordered = OrderedDict(items)
            ordered.__dict__.update(value.__dict__)  # a state_dict carries the versions of its modules there
            return ordered
        return dict(items)
    if type(value) in (list, tuple):
        inner = [plain(one) for one in value]
        return type(value)(inner) if any(new is not old for new, old in zip(inner, value, strict=True)) else value
    return value


def leaves(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Yield what is no container and not None, with its place.

    Example:
        >>> list(leaves({"a": [1, {"b": 2}]}))
        [('a[0]', 1), ('a[1].b', 2)]
    """
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from leaves(inner, f"{where}.{key}" if where else str(key))
    elif type(value) in (list, tuple, set):
        for number, inner in enumerate(value):
            yield from leaves(inner, f"{where}[{number}]")
    elif value is not None:
        yield where, value


def refused(value: Any) -> list[str]:
    """Say where there is something that takes code to be read, and what it is.

    Example:
        >>> refused({"scale": 2, "turn": [len]})
        ['turn[0] is builtins.len']
    """
    found = []
    for where, leaf in leaves(value):
        if not isinstance(leaf, HARMLESS):
            what = leaf if hasattr(leaf, "__qualname__") else type(leaf)
            found.append(f"{where} is {what.__module__}.{what.__qualname__}")
    return found
