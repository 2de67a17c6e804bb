"""Tensors in the processor's memory: as NumPy arrays of the same memory, computed by all cores."""

import ctypes
import functools
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    import paddle

NUMBERS_AT_ONCE = 1 << 18   # numbers that a thread works on at a time: 1 MB
LEAST = 1 << 15         # numbers that are worth another thread


def keep_freed_memory() -> bool:
    """Let the C library keep what is freed instead of giving it back to the system.

    Large tensors are otherwise mapped anew at every use, and the system clears each page:
    nine tenths of the time of an addition. Returns False where the C library has no such
    setting.
    """
    trim_threshold, mmap_max = -1, -4                       # names of glibc's malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    return mallopt(mmap_max, 0) == 1 and mallopt(trim_threshold, 2 ** 31 - 1) == 1


def release_freed_memory() -> bool:
    """Give back to the system, once, what the C library keeps; False where it cannot."""
    try:
        return bool(ctypes.CDLL(None).malloc_trim(0))
    except (OSError, AttributeError, TypeError):
        return False


def share(tensor: 'paddle.Tensor') -> np.ndarray:
    """Return a float32 array over a contiguous CPU tensor's memory, which it keeps alive."""
    size = math.prod(tensor.shape)
    buffer = (ctypes.c_float * size).from_address(tensor.data_ptr())
    buffer.tensor = tensor
    return np.frombuffer(buffer, 'float32').reshape(tensor.shape)


def make_contiguous(tensor: 'paddle.Tensor') -> 'paddle.Tensor':
    return tensor if tensor.is_contiguous() else tensor.contiguous()


def share_rows(tensor: 'paddle.Tensor') -> np.ndarray:
    """Return share(tensor) as a matrix: all axes but the last joined."""
    return share(tensor).reshape(-1, tensor.shape[-1])


class Rows(Protocol):
    """What run_by_rows divides: rows, and the numbers in all of them."""

    @property
    def size(self) -> int: ...

    def __len__(self) -> int: ...


def run_by_rows(work: Callable[[slice], None], array: Rows) -> None:
    """Call work(slice) for slices that cover the rows (first axis) of an array, on all cores.

    NumPy lets other threads run while it computes. A slice is NUMBERS_AT_ONCE or few more:
    larger ones leave the cores' caches, smaller ones make threads wait for Python's lock.
    """
    count = len(array)
    width = max(1, array.size // max(1, count))
    rows_at_once = -(-NUMBERS_AT_ONCE // width)

    def run(first, end):
        for start in range(first, end, rows_at_once):
            work(slice(start, min(start + rows_at_once, end)))

    threads = min(count_threads(), count, array.size // LEAST)
    if threads < 2:
        run(0, count)
        return
    bounds = [count * i // threads for i in range(threads + 1)]
    others = [_get_pool(os.getpid()).submit(run, *bounds[i:i + 2]) for i in range(1, threads)]
    run(*bounds[:2])
    for other in others:
        other.result()


@functools.cache
def count_threads() -> int:
    """Return the number of threads that Paddle computes with, too."""
    try:
        return max(1, int(os.environ.get('OMP_NUM_THREADS', '1').split(',')[0]))
    except ValueError:
        return 1


@functools.cache
def _get_pool(process):
    return ThreadPoolExecutor(count_threads())          # of this process: threads are not forked
