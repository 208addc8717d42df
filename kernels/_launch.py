"""How every kernel is launched: on the tensors' device, in one dimension, float32 products as PyTorch wants them."""

from __future__ import annotations

import functools
from contextlib import nullcontext
from typing import Any

import torch
import triton
from torch import Tensor
from triton import cdiv as cdiv

MAX_PROGRAMS = (1 << 31) - 1  # CUDA's limit in the first dimension of a grid; the others hold 65,535


def launch(kernel: Any, programs: int, *args: Any, registers: int | None = None, **meta: Any) -> None:
    """Run `programs` instances of a kernel on the device of its first tensor; none is allowed.

    `registers` per thread is for NVIDIA's assembler, which otherwise may spill a few to run more threads.
    """
    if programs == 0:
        return
    if programs > MAX_PROGRAMS:
        raise ValueError(f"The input needs {programs} programs, a GPU runs at most {MAX_PROGRAMS}. Split the batch.")
    if registers is not None and torch.version.hip is None:
        meta["maxnreg"] = registers
    device = next(arg.device for arg in args if isinstance(arg, Tensor))
    # Triton launches on the current device, which need not be the tensors'
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernel[(programs,)](*args, enable_fp_fusion=True, **meta)


def block(size: int, least: int = 16, most: int = 128) -> int:
    """Return the power of two from `least` to `most` that covers `size` best: 16 is the least that `tl.dot` takes."""
    return min(most, max(least, triton.next_power_of_2(size)))


def precision(*, distances: bool = False) -> str:
    """Return how float32 products are computed, by `torch.set_float32_matmul_precision`.

    ``"highest"`` is IEEE; ``"high"`` and ``"medium"`` use the tensor cores: TF32, and for distances, whose terms
    cancel, three TF32 products. AMD's matrix cores multiply float32 as it is.
    """
    if torch.version.hip is not None or torch.get_float32_matmul_precision() == "highest":
        return "ieee"
    return "tf32x3" if distances else "tf32"


def splits(programs: int, length: int, piece: int) -> int:
    """Return in how many parts to cut a sum of `length` terms so that some hundred programs run.

    It depends on sizes alone, not on the device: the same input gives the same bits everywhere.
    """
    return max(1, min(cdiv(256, max(1, programs)), cdiv(length, piece)))


@functools.lru_cache(maxsize=256)
def int_table(values: tuple[int, ...], device: torch.device) -> Tensor:
    """Return integers as a tensor; kept, as a copy to the device has no place in a CUDA graph."""
    return torch.tensor(values, dtype=torch.int32).to(device)
