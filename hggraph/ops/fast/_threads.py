"""Stripes of an image over torch's number of threads: compiled code without the interpreter's lock."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

__all__ = ["num_stripes", "run"]

_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}  # of this process; a fork leaves the parent's threads behind


def num_stripes(rows: int, private: int = 0, pixels: int = 0, most: int = 32) -> int:
    """Return into how many stripes rows are cut; it depends on sizes only, so results do too.

    Args:
        rows: Rows (of pixels or blocks) to share.
        private: Numbers that each stripe holds for itself.
        pixels: Pixels of the image: all stripes together hold at most that many numbers, two stripes any number.
        most: The largest number of stripes.

    Example:
        >>> num_stripes(21), num_stripes(256), num_stripes(256, private=1000, pixels=8000)
        (21, 32, 8)
    """
    if private:
        most = min(most, max(2, pixels // private))
    return max(1, min(rows, most))


def run(kernel: Callable[..., Any], stripes: int, *arguments: Any) -> None:
    """Call ``kernel(first, last, *arguments)`` until every stripe from 0 to `stripes` was in [first, last).

    The calling thread works too. One thread gets all stripes in one call.

    Example:
        >>> done = []
        >>> run(lambda first, last: done.extend(range(first, last)), 5)
        >>> sorted(done)
        [0, 1, 2, 3, 4]
    """
    threads = min(torch.get_num_threads(), stripes)
    if threads <= 1:
        kernel(0, stripes, *arguments)
        return
    chunks = min(stripes, 4 * threads)  # fewer calls than stripes, more than threads: they rarely run equally fast
    numbers = iter(range(chunks))

    def work(numbers: Iterator[int]) -> None:
        for i in numbers:  # each number goes to one thread
            kernel(i * stripes // chunks, (i + 1) * stripes // chunks, *arguments)

    pool = _pool(threads - 1)
    helpers = [pool.submit(work, numbers) for _ in range(threads - 1)]
    work(numbers)
    for helper in helpers:
        if not helper.cancel():  # one that never began has nothing left to do
            helper.result()


def _pool(threads: int) -> ThreadPoolExecutor:
    key = (os.getpid(), threads)
    if key not in _pools:
        _pools[key] = ThreadPoolExecutor(threads, thread_name_prefix="hggraph-fast")
    return _pools[key]
