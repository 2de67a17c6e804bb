"""Gigabytes at the speed of memory: matrices transposed, bytes compared and checksummed.

`bulk.c` does what zlib and NumPy do here otherwise, in a third of their time; the results
are the same. See common/kernels/compiled.py for when there is no compiled library.
"""

import ctypes
import functools
import os
import zlib

import numpy as np

from common.kernels import compiled
from common.kernels.compiled import get_address

SOURCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'bulk.c')
LEAST = 1 << 12             # bytes that are worth a call
COMPARED = 1 << 18          # bytes that NumPy compares at once: a result fits into the cache
STEP = 128                  # rows that NumPy transposes at once

POINTER, NUMBER = ctypes.c_void_p, ctypes.c_int64
SIGNATURES = {
    'transpose': (None, (POINTER, NUMBER, POINTER, NUMBER, NUMBER, NUMBER)),
    'are_equal': (ctypes.c_int, (POINTER, POINTER, NUMBER)),
    'fold_crc': (NUMBER, (POINTER, NUMBER, ctypes.c_uint32, POINTER)),
}


def transpose(source, target):
    """Write a float32 matrix [rows, columns] into another, [columns, rows].

    Raises ValueError where the shapes do not fit.
    """
    if source.shape != target.shape[::-1]:
        raise ValueError(f'{source.shape} does not transpose to {target.shape}')
    kernels = load_kernels()
    if kernels is None or source.dtype != np.float32 or target.dtype != np.float32 \
            or not _has_plain_rows(source) or not _has_plain_rows(target) \
            or not target.flags.writeable:      # NumPy refuses it
        _transpose_in_blocks(source, target)
        return
    kernels.transpose(get_address(source), source.strides[0] // 4, get_address(target),
                      target.strides[0] // 4, *source.shape)


def crc32(data, crc=0):
    """Return zlib.crc32(data, crc)."""
    data = np.frombuffer(data, np.uint8)
    kernels = load_kernels() if len(data) >= LEAST else None
    if kernels is not None:
        folded = (ctypes.c_uint8 * 16)()
        done = kernels.fold_crc(get_address(data), len(data), crc ^ 0xffffffff, folded)
        if done:
            crc = zlib.crc32(folded, 0xffffffff)        # from a register of zero
            data = data[done:]
    return zlib.crc32(data, crc)


def are_equal(first, second):
    """Return whether two contiguous uint8 arrays of the same length hold the same bytes."""
    kernels = load_kernels()
    if kernels is not None:
        return bool(kernels.are_equal(get_address(first), get_address(second), len(first)))
    return all(np.array_equal(first[at:at + COMPARED], second[at:at + COMPARED])
               for at in range(0, len(first), COMPARED))


@functools.lru_cache(maxsize=1)
def load_kernels():
    """Return the compiled kernels, or None with the reason in the log."""
    return compiled.load_kernels(SOURCE, 'checkpoints', SIGNATURES)


def _transpose_in_blocks(source, target):
    # Rows of a length that is no power of two: read down the columns they stay in the cache,
    # which takes a third of the time of NumPy's own transposition.
    block = np.empty((STEP, source.shape[1] + 32), source.dtype)[:, :source.shape[1]]
    for start in range(0, len(source), STEP):
        part = source[start:start + STEP]
        np.copyto(block[:len(part)], part)
        np.copyto(target[:, start:start + STEP], block[:len(part)].T, casting='unsafe')


def _has_plain_rows(array):
    return array.strides[1] == 4 and array.strides[0] % 4 == 0 and array.flags.aligned
