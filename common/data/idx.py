"""MNIST and Fashion-MNIST from their IDX files (http://yann.lecun.com/exdb/mnist), gz or raw."""

import gzip
import math
import os
import struct
import zlib

import numpy as np

from common.data.images import show_path
from common.data.official import fetch_official
from common.errors import UserError

FILES = {True: ('train-images-idx3-ubyte', 'train-labels-idx1-ubyte'),      # by is_train
         False: ('t10k-images-idx3-ubyte', 't10k-labels-idx1-ubyte')}
CLASS_NAMES = {
    'mnist': [str(digit) for digit in range(10)],
    'fashion_mnist': ['T-shirt/top', 'Trouser', 'Pullover', 'Dress', 'Coat', 'Sandal', 'Shirt',
                      'Sneaker', 'Bag', 'Ankle boot']}
SIDE = 28
MAX_IMAGES = 10_000_000
UINT8 = 8                       # type code of an IDX file


def load_idx(name: str, data_path: str,
             is_train: bool) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return (gray images uint8 [N, 28, 28], labels int64 [N], class names) of a part.

    name: "mnist" or "fashion_mnist". data_path: the folder with the files, or "" to download.
    Raises UserError.
    """
    paths = _find_files(name, data_path, is_train)
    images, labels = read_idx(paths[0], 3), read_idx(paths[1], 1)
    if images.shape[1:] != (SIDE, SIDE):
        raise UserError(f'{show_path(paths[0])}: images of {images.shape[1]} x {images.shape[2]}, '
                        f'not of {SIDE} x {SIDE}.')
    if len(images) != len(labels) or not len(images):
        raise UserError(f'{show_path(paths[1])}: {len(labels)} labels for {len(images)} images.')
    names = CLASS_NAMES[name]
    if labels.max() >= len(names):
        raise UserError(f'{show_path(paths[1])}: label {labels.max()} is outside the '
                        f'{len(names)} classes.')
    return images, labels.astype(np.int64), names


def read_idx(path: str, ndim: int) -> np.ndarray:
    """Return the array, uint8 with `ndim` axes, of an IDX file, gz or raw. Raises UserError."""
    try:
        with open(path, 'rb') as raw:
            is_gz = raw.read(2) == b'\x1f\x8b'
        with (gzip.open if is_gz else open)(path, 'rb') as file:
            head = file.read(4 + 4 * ndim)
            if len(head) < 4 + 4 * ndim or head[:4] != bytes((0, 0, UINT8, ndim)):
                raise UserError(f'{show_path(path)} is not an IDX file of bytes with {ndim} axes.')
            shape = struct.unpack(f'>{ndim}I', head[4:])
            if shape[0] > MAX_IMAGES or max(shape[1:], default=0) > 65_535 or \
                    math.prod(shape) > MAX_IMAGES * SIDE * SIDE:
                raise UserError(f'{show_path(path)}: its size {shape} is unreasonable.')
            data = file.read(math.prod(shape) + 1)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, 'strerror', None) or error
        raise UserError(f'Cannot read {show_path(path)}: {reason}.') from None
    if len(data) != math.prod(shape):
        raise UserError(f'{show_path(path)}: expected {math.prod(shape):,} bytes of shape {shape}, '
                        f'found {"more" if len(data) > math.prod(shape) else f"{len(data):,}"}.')
    return np.frombuffer(data, np.uint8).reshape(shape)


def _find_files(name, data_path, is_train):
    """Return the paths of the images' and the labels' file."""
    if not data_path:
        return _download(name, is_train)
    folder = os.path.expanduser(data_path)
    if not os.path.isdir(folder):
        raise UserError(f'No such folder: {show_path(data_path)} (-data_path). It must hold '
                        f'{FILES[is_train][0]} and its like, or these with .gz.')
    paths = []
    for file in FILES[is_train]:
        stem, kind = file.rsplit('-idx', 1)
        names = [f'{stem}{mark}idx{kind}{ending}' for ending in ('', '.gz') for mark in '-.']
        found = [os.path.join(folder, n) for n in names if os.path.isfile(os.path.join(folder, n))]
        if not found:
            raise UserError(f'{show_path(data_path)} holds no {file}, nor {file}.gz.')
        paths.append(found[0])
    return paths


def _download(name, is_train):
    from paddle.vision.datasets import MNIST, FashionMNIST

    official = {'mnist': MNIST, 'fashion_mnist': FashionMNIST}[name]
    part = 'TRAIN' if is_train else 'TEST'
    return [fetch_official(getattr(official, f'{part}_{kind}_URL'),
                           getattr(official, f'{part}_{kind}_MD5'), official.NAME)
            for kind in ('IMAGE', 'LABEL')]
