"""What every object made of tensors does with all of them: move, detach, map as a pytree, save as data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

__all__ = ["Bundle"]


class Bundle:
    """Some tensors and what describes them. A subclass says which by `_parts` and `_fill`, and is then a pytree.

    Pickled are these parts alone, so that ``torch.load(weights_only=True)`` reads a file of it.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        pytree.register_pytree_node(cls, cls._parts, lambda tensors, rest: cls.__new__(cls)._fill(list(tensors), rest))
        torch.serialization.add_safe_globals([cls])

    def _parts(self) -> tuple[list[Any], Any]:
        """Return the tensors, and all that `_fill` needs beside them."""
        raise TypeError(f"{type(self).__name__} must say of which tensors it is made.")

    def _fill(self, tensors: list[Any], rest: Any) -> Self:
        """Take what `_parts` returned, unchecked: of a pytree the tensors may be anything."""
        raise TypeError(f"{type(self).__name__} must say how it is made of tensors.")

    def __getstate__(self) -> tuple[list[Any], Any]:
        """Return what is pickled: nothing that can be computed again."""
        return self._parts()

    def __setstate__(self, state: tuple[list[Any], Any]) -> None:
        """Take it back."""
        self._fill(*state)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Return it on another device or in another floating-point type, as `torch.Tensor.to` does; itself if it is."""
        first = next(tensor for tensor in self._parts()[0] if tensor.is_floating_point())
        device = first.to(*args, **kwargs).device
        return self._map(lambda x: x.to(*args, **kwargs) if x.is_floating_point() else x.to(device))

    def detach(self) -> Self:
        """Return it without a gradient."""
        return self._map(Tensor.detach)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Self:
        tensors, rest = self._parts()
        mapped = [function(tensor) for tensor in tensors]
        same = all(after is before for after, before in zip(mapped, tensors, strict=True))
        return self if same else type(self).__new__(type(self))._fill(mapped, rest)
