"""Resamples position embeddings between patch grids, each way that a source does it.

Every method is linear and works along rows and columns separately, so it is one
matrix for each axis (ViT paper, Sec. 3.2).
"""

from collections.abc import Sequence

import numpy as np

from common.errors import UserError, suggest


def resize_positions(embedding: np.ndarray, num_prefix_tokens: int, old_grid: Sequence[int],
                     new_grid: Sequence[int], method: str) -> np.ndarray:
    """Return a position embedding for another grid; the prefix tokens' rows stay.

    embedding: [1, P + rows * cols, D]. grids: (rows, cols). method: a key of METHODS.
    Returns float32 [1, P + new_rows * new_cols, D], computed in float64.
    """
    if method not in METHODS:
        raise UserError(f'Unknown way to resize position embeddings: {method!r}.'
                        f'{suggest(method, METHODS)}')
    prefix, patches = np.split(embedding[0].astype(np.float64), [num_prefix_tokens])
    patches = patches.reshape(*old_grid, -1)
    rows, cols = (METHODS[method](old, new) for old, new in zip(old_grid, new_grid))
    patches = np.tensordot(rows, patches, axes=(1, 0))              # [new_rows, cols, D]
    patches = np.tensordot(cols, patches, axes=(1, 1))              # [new_cols, new_rows, D]
    patches = patches.transpose(1, 0, 2).reshape(-1, patches.shape[-1])
    return np.concatenate([prefix, patches])[None].astype(np.float32)


def linear_corners(old: int, new: int) -> np.ndarray:
    """Matrix [new, old]: linear, first and last point fixed (vit_jax: scipy's zoom, order 1)."""
    positions = np.linspace(0, old - 1, new) if new > 1 else np.zeros(1)
    return np.maximum(0, 1 - np.abs(positions[:, None] - np.arange(old)))


def bicubic(old: int, new: int) -> np.ndarray:
    """Matrix [new, old]: cubic with a = -0.75 and repeated borders (PyTorch's default)."""
    return _interpolate_cubically((np.arange(new) + 0.5) * old / new - 0.5, old)


def bicubic_offset(old: int, new: int) -> np.ndarray:
    """Matrix [new, old]: as bicubic, at the places of a grid that is larger by 0.1 (DINO).

    DINO and DINOv2 add 0.1 to the size against rounding, and interpolate by the ratio.
    """
    return _interpolate_cubically((np.arange(new) + 0.5) * old / (new + 0.1) - 0.5, old)


def bicubic_corners(old: int, new: int) -> np.ndarray:
    """Matrix [new, old]: as bicubic, but first and last point fixed (PyTorch's align_corners)."""
    positions = np.linspace(0, old - 1, new) if new > 1 else np.zeros(1)
    return _interpolate_cubically(positions, old)


def bicubic_antialias(old: int, new: int) -> np.ndarray:
    """Matrix [new, old]: cubic with a = -0.5, widened when shrinking (timm; Pillow's bicubic)."""
    scale = max(old / new, 1)
    centers = (np.arange(new) + 0.5) * old / new
    distances = (np.arange(old) + 0.5 - centers[:, None]) / scale
    weights = cubic(distances, a=-0.5)
    return weights / weights.sum(axis=1, keepdims=True)


def _interpolate_cubically(positions, old):
    """Return the matrix [positions, old] of cubic interpolation with repeated borders."""
    first = np.floor(positions).astype(int)
    matrix = np.zeros((len(positions), old))
    for offset in (-1, 0, 1, 2):
        neighbours = np.clip(first + offset, 0, old - 1)
        weights = cubic(positions - (first + offset), a=-0.75)
        np.add.at(matrix, (np.arange(len(positions)), neighbours), weights)
    return matrix


def cubic(distance: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic convolution kernel, which is zero from a distance of 2 on."""
    x = np.abs(distance)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x < 1, near, np.where(x < 2, far, 0))


METHODS = {'google': linear_corners, 'bicubic': bicubic, 'bicubic_corners': bicubic_corners,
           'bicubic_offset': bicubic_offset, 'timm': bicubic_antialias}
