"""Fits a file's position table to a model's tokens: other grids, tokens without a row."""

import math

import numpy as np

from common.errors import UserError
from common.project import Model, Project
from common.weights.read import Weights
from common.weights.resize import resize_positions
from common.weights.rules import Tensor


def plan_positions(model: Model, weights: Weights, tensors: dict[str, Tensor],
                   resized: dict[str, str], method: str, project: Project) -> dict[str, np.ndarray]:
    """Return {name: ndarray} for a position table whose rows are not the model's.

    Another grid of patches is resampled. Tokens before the patches without a row in the file,
    the last of them, get zeros. resized: gets {name: what was done}. method: of METHODS, or
    'source' for the source's own. Raises UserError for rows that are no grid.
    """
    parameters = model.state_dict()
    name = next((name for name in project.positions if name in parameters), None)
    if name is None or name not in tensors:
        return {}
    shape = tensors[name].shape
    if len(shape) != 3 or shape[0] != 1 or shape[2] != parameters[name].shape[2]:
        return {}                               # another model: its shapes will say so
    rows, new_grid = model.num_prefix_positions, (model.grid_size[0], model.grid_size[1])
    found = split_rows(shape[1], rows, weights.grid_size)
    if found is None and shape == list(parameters[name].shape):
        found = rows, new_grid                  # a grid that is no square, but the model's
    if found is None:
        if {*tensors} - {*parameters}:
            return {}                           # another model: its names will say so
        raise UserError(
            f'{weights.path}: {name} has {shape[1]} rows. Without the {rows} of the tokens '
            f'before the patches they are no square grid, and not the model\'s {new_grid[0]} x '
            f'{new_grid[1]}.')
    file_rows, old_grid = found
    if (file_rows, old_grid) == (rows, new_grid):
        return {}
    values = tensors[name].get()
    if file_rows < rows:
        zeros = np.zeros([1, rows - file_rows, values.shape[2]], values.dtype)
        values = np.concatenate([values[:, :file_rows], zeros, values[:, file_rows:]], axis=1)
        resized[name] = 'by rows of zeros for tokens that have no position in the file'
    if old_grid != new_grid:
        hint = ''
        if method == 'source':
            method = weights.position_resize
            if weights.project_resize:
                hint = (f" (the project that trained it does so by MODEL.POSITION_RESIZE "
                        f"{weights.project_resize})")
        resized[name] = (f'from {old_grid[0]} x {old_grid[1]} to {new_grid[0]} x '
                         f'{new_grid[1]} patches, method {method}{hint}')
        values = resize_positions(values, rows, old_grid, new_grid, method)
    return {name: values}


def split_rows(count: int, most: int,
               grid: tuple[int, int] | None = None) -> tuple[int, tuple[int, int]] | None:
    """Return (rows before the patches, grid) of a position table; None if no number fits.

    count: of all rows. most: tokens before the patches. In published checkpoints all of them have
    rows, or those that a head reads, the first one or two, or none. grid: what the file records;
    without it a square is looked for, which is what every published checkpoint has.
    """
    for rows in sorted({most, *range(min(most, 2) + 1)}, reverse=True):
        side = math.isqrt(max(count - rows, 0))
        patches = grid or (side, side)
        if patches[0] and rows + patches[0] * patches[1] == count:
            return rows, patches
    return None
