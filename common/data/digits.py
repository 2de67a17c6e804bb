"""The handwritten digits that come with the project (UCI, CC BY 4.0; see assets/README.md)."""

import os

import numpy as np

DIGITS_FILE = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'assets', 'digits.npz')
MAX_VALUE = 16


def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """Return (images uint8 [1797, 8, 8] with values 0..16, labels int64 [1797]), source order."""
    with np.load(DIGITS_FILE, allow_pickle=False) as arrays:
        return arrays['images'], arrays['labels'].astype(np.int64)


def load_digits_rgb() -> tuple[np.ndarray, np.ndarray]:
    """Return (images uint8 [1797, 8, 8, 3] with values 0..255, labels int64 [1797])."""
    images, labels = load_digits()
    gray = np.rint(images * (255 / MAX_VALUE)).astype(np.uint8)
    return np.repeat(gray[..., None], 3, axis=-1), labels
