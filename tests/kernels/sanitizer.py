"""A memory checker for Triton's interpreter: kernels may touch the elements of their arguments and nothing else."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from triton.runtime import interpreter


def addresses(x: torch.Tensor) -> np.ndarray:
    """Return the address of every element of a tensor of any strides."""
    offsets = np.zeros(tuple(x.shape), dtype=np.int64)
    for axis, (size, stride) in enumerate(zip(x.shape, x.stride(), strict=True)):
        shape = [1] * x.dim()
        shape[axis] = size
        offsets = offsets + (np.arange(size) * stride).reshape(shape)
    return np.unique(x.data_ptr() + offsets.reshape(-1) * x.element_size())


class CheckedMemory:
    """Stands in for the interpreter's loads and stores."""

    def __init__(self, memory) -> None:
        self.memory = memory
        self.allowed = np.empty(0, dtype=np.int64)
        self.accesses = 0

    def check(self, what: str, pointers: np.ndarray, mask: np.ndarray) -> None:
        touched = pointers.astype(np.int64)[mask.astype(bool)]
        self.accesses += touched.size
        outside = ~np.isin(touched, self.allowed)
        if outside.any():
            raise MemoryError(f"a kernel {what} {int(outside.sum())} elements outside of its arguments")

    def load(self, pointers, mask, other, dtype):
        self.check("reads", pointers, mask)
        return self.memory.load(pointers, mask, other, dtype)

    def store(self, pointers, value, mask):
        self.check("writes", pointers, mask)
        return self.memory.store(pointers, value, mask)

    def __getattr__(self, name: str):  # atomics and the like
        raise AssertionError(f"kernels of this project use no {name}")


@contextmanager
def checked_memory() -> Iterator[CheckedMemory]:
    """Raise for each access outside of the tensors that a kernel was given."""
    memory, call = interpreter._interpreter, interpreter.GridExecutor.__call__
    checked = CheckedMemory(memory)

    def checked_call(self, *args, **kwargs):
        tensors = [arg for arg in (*args, *kwargs.values()) if isinstance(arg, torch.Tensor)]
        checked.allowed = np.unique(np.concatenate([addresses(x) for x in tensors]))
        return call(self, *args, **kwargs)

    interpreter._interpreter, interpreter.GridExecutor.__call__ = checked, checked_call
    try:
        yield checked
    finally:
        interpreter._interpreter, interpreter.GridExecutor.__call__ = memory, call
