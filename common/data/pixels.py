"""Resize, affine transform, rotation of PIL images, and their bytes: Pillow's, in less time.

Pillow moves one value at a time. `pixels.c` does the same arithmetic on vectors, in
Pillow's own memory. Pillow itself is used where there is no compiled library (see
common/kernels/compiled.py), where Pillow does not show its memory (before 11.2), for other modes
and filters, and if the kernels give one byte that differs from Pillow's when they are
first loaded. The pixels are the same either way.
"""

import contextlib
import ctypes
import functools
import itertools
import logging
import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL
from PIL import Image

from common.kernels.compiled import LibraryError, get_address, load_library

SOURCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'pixels.c')
FILTERS = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)
PILLOW = int(PIL.__version__.split('.')[0])

logger = logging.getLogger(__name__)


def resize(image: Image.Image, size: tuple[int, int], resample: Image.Resampling,
           box: Any = None,
           window: Any = None) -> Image.Image:
    """Return image.crop(box).resize(size, resample).crop(window), none of the rest computed.

    image: PIL image. box, window: (left, top, right, bottom), by default everything.
    """
    box, window = box or (0, 0, *image.size), window or (0, 0, *size)
    is_ordinary = _is_inside(box, image.size) and _is_inside(window, size)
    memory = _find_memory(image) if is_ordinary and resample in FILTERS else None
    if memory is not None:
        # A result above 16 MB lies in several pieces, which Pillow does not show.
        with contextlib.suppress(ValueError):
            return _resize(load_kernels(), memory, size, resample, box, window)
    # Cropping first keeps pixels outside the box out; Pillow's resize(box=...) does not.
    image = image if box == (0, 0, *image.size) else image.crop(box)
    image = image if size == image.size else image.resize(size, resample)
    return image if window == (0, 0, *size) else image.crop(window)


def transform(image: Image.Image, matrix: Sequence[float], resample: Image.Resampling,
              fill: Any = 0) -> Image.Image:
    """Return image.transform(image.size, AFFINE, matrix, resample, fillcolor=fill)."""
    memory = _find_memory(image) if resample in FILTERS else None
    if memory is None:
        return image.transform(
            image.size, Image.Transform.AFFINE, matrix, resample=resample, fillcolor=fill)
    return _transform(load_kernels(), memory, matrix, resample, fill)


def rotate(image: Image.Image, degrees: float, resample: Image.Resampling,
           fill: Any = 0) -> Image.Image:
    """Return image.rotate(degrees, resample, fillcolor=fill)."""
    if degrees % 90 == 0 or load_kernels() is None:
        return image.rotate(degrees, resample=resample, fillcolor=fill)
    angle = -math.radians(degrees % 360)
    cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
    x, y = image.width / 2, image.height / 2
    matrix = (cos, sin, cos * -x + sin * -y + x, -sin, cos, -sin * -x + cos * -y + y)
    return transform(image, matrix, resample, fill)


def to_array(image: Image.Image) -> np.ndarray:
    """Return a PIL RGB image as uint8 [height, width, 3]."""
    memory = _find_memory(image)
    return np.asarray(image, dtype=np.uint8) if memory is None else _pack(load_kernels(), memory)


@functools.lru_cache(maxsize=1)
def load_kernels() -> Any:
    """Return the compiled kernels, or None with the reason in the log."""
    if not hasattr(Image.Image, '__arrow_c_array__'):
        reason = f'Pillow {PIL.__version__} does not show its memory, 11.2 does'
    else:
        try:
            kernels = _declare(load_library(SOURCE))
            if _equal_pillow(kernels):
                return kernels
            reason = f'their pixels are not those of Pillow {PIL.__version__}'
        except (LibraryError, ValueError) as error:
            reason = str(error)
    logger.info('Image kernels: none (%s). Pillow does it: the same pixels, more slowly.', reason)
    return None


class _ArrowArray(ctypes.Structure):
    """ArrowArray of the Arrow C data interface, up to the fields that are read here."""


_ArrowArray._fields_ = [
    ('length', ctypes.c_int64), ('null_count', ctypes.c_int64), ('offset', ctypes.c_int64),
    ('n_buffers', ctypes.c_int64), ('n_children', ctypes.c_int64),
    ('buffers', ctypes.POINTER(ctypes.c_void_p)),
    ('children', ctypes.POINTER(ctypes.POINTER(_ArrowArray))),
]
_get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_get_pointer.restype, _get_pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)


class _Memory:
    """An image's pixels where Pillow keeps them; they stay there as long as this does."""

    def __init__(self, image):
        self.size = image.size
        _, self.capsule = image.__arrow_c_array__()
        array = _ArrowArray.from_address(_get_pointer(self.capsule, b'arrow_array'))
        self.address = array.children[0].contents.buffers[1]


def _find_memory(image):
    """Return the memory of an image that the kernels can take, or None."""
    if image.mode != 'RGB' or load_kernels() is None:
        return None
    try:
        return _Memory(image)
    except (ValueError, MemoryError):       # in several pieces: above 16 MB
        return None


def _resize(kernels, memory, size, resample, box, window):
    left, top, right, bottom = box
    result = Image.new('RGB', (window[2] - window[0], window[3] - window[1]), None)
    stride = 4 * memory.size[0]
    done = kernels.resize_window(
        memory.address + top * stride + 4 * left, stride, right - left, bottom - top,
        _Memory(result).address, *size, *window[:2], *result.size, int(resample),
        _resizes_down_first((right - left, bottom - top), size))
    if not done:
        raise MemoryError(f'no memory to resize {right - left} x {bottom - top} pixels')
    return result


def _resizes_down_first(size, new_size):
    """Return whether Pillow resizes down before across: it rounds to bytes in between."""
    lost_width, lost_height = size[0] - new_size[0], size[1] - new_size[1]
    return PILLOW >= 13 and lost_height > max(0, 2 * lost_width)


def _transform(kernels, memory, matrix, resample, fill):
    result = Image.new('RGB', memory.size, fill)
    kernels.transform_affine(
        memory.address, _Memory(result).address, *memory.size, (ctypes.c_double * 6)(*matrix),
        int(resample))
    return result


def _pack(kernels, memory):
    width, height = memory.size
    array = np.empty((height, width, 3), np.uint8)
    kernels.pack(memory.address, get_address(array), width * height)
    return array


def _is_inside(box, size):
    return 0 <= box[0] < box[2] <= size[0] and 0 <= box[1] < box[3] <= size[1]


def _declare(kernels):
    pointer, number = ctypes.c_void_p, ctypes.c_int
    kernels.resize_window.argtypes = (
        pointer, ctypes.c_int64, number, number, pointer, *8 * (number,))
    kernels.transform_affine.argtypes = pointer, pointer, number, number, pointer, number
    kernels.transform_affine.restype = None
    kernels.pack.argtypes = pointer, pointer, ctypes.c_int64
    kernels.pack.restype = None
    return kernels


def _equal_pillow(kernels):
    """Return whether the kernels give Pillow's pixels of an image of noise."""
    noise = np.random.default_rng(0).integers(0, 256, (67, 53, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    if not np.array_equal(_pack(kernels, _Memory(image)), noise):
        return False
    memory, box = _Memory(image), (0, 0, *image.size)
    # Larger, smaller, and around the shapes at which Pillow 13 changes the order of the passes.
    sizes = [(80, 90), (20, 22), (60, 66), (60, 67), (43, 46), (43, 47), (43, 48), (30, 10)]
    matrix = (0.9, 0.2, -3.3, -0.3, 1.1, 4.4)
    for resample, size in itertools.product(FILTERS, sizes):
        if _resize(kernels, memory, size, resample, box, (0, 0, *size)) != image.resize(
                size, resample):
            return False
        if _transform(kernels, memory, matrix, resample, (1, 2, 3)) != image.transform(
                image.size, Image.Transform.AFFINE, matrix, resample, fillcolor=(1, 2, 3)):
            return False
    return True
