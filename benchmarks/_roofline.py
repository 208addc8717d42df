"""The least time that a machine needs for given bytes and operations, from rates measured in the same run."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hggraph.benchmarks._timing import take_turns

__all__ = ["Roofline", "Work", "size_of"]


@dataclass(frozen=True)
class Work:
    """Least traffic, each input read and each output written once, and floating-point operations (2 a multiply-add)."""

    bytes: float
    flops: float


@dataclass(frozen=True)
class Roofline:
    """Bytes per second of a large copy, read and written ones counted, and operations per second of a large product."""

    bandwidth: float
    rate: float

    @classmethod
    def measure(cls, device: torch.device, dtype: torch.dtype, *, quick: bool = False) -> Roofline:
        """Measure both on this device, the product in `dtype`."""
        large = device.type == "cuda" and not quick
        # many CPUs multiply half precision a hundred times slower
        numbers, side = (1 << 28, 8192) if large else (1 << 25, 1536 if dtype == torch.float32 else 512)
        if quick:
            numbers, side = 1 << 12, 32
        source = torch.ones(numbers, device=device)
        target = torch.empty_like(source)
        a = torch.randn(side, side, device=device, dtype=dtype)
        contenders = {"copy": lambda: target.copy_(source), "product": lambda: a @ a}
        times = take_turns(contenders, 1 if quick else 9, device)
        # the best of the rounds: a bound is what the machine can do
        copy, product = (min(times[name].seconds) for name in contenders)
        return cls(2 * source.nbytes / copy, 2 * side**3 / product)

    def seconds(self, work: Work) -> float:
        """Return the least time for this work: the longer of moving and computing."""
        return max(work.bytes / self.bandwidth, work.flops / self.rate)

    def share(self, work: Work, seconds: float) -> float:
        """Return the least time over the time taken."""
        return self.seconds(work) / seconds


def size_of(*tensors: torch.Tensor) -> int:
    """Return the bytes of the tensors' elements."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
