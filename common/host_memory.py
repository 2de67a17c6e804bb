"""Tensors in the processor's memory: as NumPy arrays of the same memory, and how it is kept."""

import ctypes
import math

import numpy as np


def keep_freed_memory():
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


def share(tensor):
    """Return a float32 array over a contiguous CPU tensor's memory, which it keeps alive."""
    size = math.prod(tensor.shape)
    buffer = (ctypes.c_float * size).from_address(tensor.data_ptr())
    buffer.tensor = tensor
    return np.frombuffer(buffer, 'float32').reshape(tensor.shape)


def make_contiguous(tensor):
    return tensor if tensor.is_contiguous() else tensor.contiguous()


def share_rows(tensor):
    """Return share(tensor) as a matrix: all axes but the last joined."""
    return share(tensor).reshape(-1, tensor.shape[-1])
