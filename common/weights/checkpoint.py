"""From any checkpoint file to tensors under our names: which format, which weights in it."""

import json
import math
from dataclasses import dataclass

import numpy as np

from common.errors import UserError
from common.weights.containers import open_container
from common.weights.formats import FORMATS

# Where training checkpoints keep their weights, the preferred entry first.
EMA_ENTRIES = ('model_ema', 'state_dict_ema', 'ema_state_dict')
RAW_ENTRIES = ('model', 'state_dict', 'params')


@dataclass
class Checkpoint:
    """A checkpoint's tensors under our names and in our layout.

    tensors: {our name: rules.Tensor}. leftover: their names that have no place in
    any model here. entry: where in the file the weights were, '' at the top.
    numerics: arguments of set_numerics. grid_size: (rows, cols) of the position
    embedding, None where the file does not say.
    """

    path: str
    format: str
    entry: str
    tensors: dict
    leftover: list
    ignored: list
    numerics: dict
    position_resize: str
    grid_size: tuple | None


def read_checkpoint(path, use_ema=True):
    """Return the Checkpoint in a file or Hugging Face folder of any known format.

    use_ema: take the averaged weights of a training checkpoint, where it has
    them. Raises UserError for a file that is no checkpoint of a known format.
    """
    container = open_container(path)
    entry, tensors = _choose_weights(container, use_ema)
    form = next((form for form in FORMATS if form.matches(container.kind, tensors)), None)
    if form is None:
        raise UserError(
            f'{container.path}: no known format of ViT or T2T-ViT weights. Names in the file: '
            f'{list_first(tensors)}. Known: {", ".join(form.name for form in FORMATS)}.')
    converted, leftover = form.convert(tensors)
    recorded = _read_record(container)
    grid_size = recorded.pop('grid_size', None)
    try:
        special = form.read_numerics(container.config, set(tensors))
    except UserError as error:
        raise UserError(f'{container.path}: {error}') from None
    numerics = {**form.numerics, **special, **recorded}
    if not any(name.startswith('pre_logits.') for name in converted):
        numerics.pop('pre_logits_activation', None)
    _check_numerics(numerics, container.path)
    ignored = [name for name in leftover if form.is_ignored(name) or tensors[name].ndim == 0]
    return Checkpoint(
        path=container.path, format=form.name, entry=entry, tensors=converted,
        leftover=[name for name in leftover if name not in ignored], ignored=ignored,
        numerics=numerics, position_resize=form.position_resize, grid_size=grid_size)


def list_first(names, count=4):
    """Return the first names as text: "a, b, c, d, ... (12 in all)"."""
    names = [str(name)[:80] for name in names]
    more = f', ... ({len(names)} in all)' if len(names) > count else ''
    return (', '.join(names[:count]) or 'none') + more


def _choose_weights(container, use_ema):
    """Return (entry, {name: ndarray}) of the wanted weights."""
    tree = container.tree
    entries = (*EMA_ENTRIES, *RAW_ENTRIES) if use_ema else (*RAW_ENTRIES, *EMA_ENTRIES)
    for entry in entries:
        if isinstance(tree.get(entry), dict):
            tensors = _get_tensors(tree[entry])
            if tensors:
                return entry, tensors
    tensors = _get_tensors(tree)
    if not tensors:
        raise UserError(f'{container.path} holds no tensors. Entries in it: {list_first(tree)}.')
    return '', tensors


def _get_tensors(branch):
    """Return the arrays of a state dict, without the "module." of DataParallel."""
    tensors = {}
    for name, value in branch.items():
        if isinstance(name, str) and isinstance(value, np.ndarray):
            tensors[name.removeprefix('module.')] = value
    return tensors


def _read_record(container):
    """Return the numerics and grid that checkpoints written here record, {} for others."""
    record = container.tree.get('numerics') or container.metadata.get('numerics') or {}
    if isinstance(record, str):                 # a .safetensors keeps text only
        try:
            record = json.loads(record)
        except (ValueError, RecursionError):
            record = None
    if not isinstance(record, dict):
        raise UserError(f'{container.path} is damaged: its record of the numerics is unreadable.')
    known = ('gelu', 'layer_norm_eps', 'pre_logits_activation', 'grid_size')
    record = {key: record[key] for key in known if record.get(key) is not None}
    grid = record.get('grid_size')
    if grid is not None:
        if not isinstance(grid, (list, tuple)) or len(grid) != 2 or any(
                type(size) is not int or not 0 < size < 10_000 for size in grid):
            raise UserError(f'{container.path} is damaged: its grid size is {str(grid)[:40]}.')
        record['grid_size'] = tuple(grid)
    return record


def _check_numerics(numerics, path):
    epsilon = numerics['layer_norm_eps']
    if isinstance(epsilon, bool) or not isinstance(epsilon, (int, float)) or not (
            math.isfinite(epsilon) and 0 <= epsilon < 1):
        raise UserError(f'{path}: a LayerNorm epsilon of {str(epsilon)[:40]} makes no sense.')
    if numerics['gelu'] not in ('erf', 'tanh'):
        raise UserError(f'{path}: unknown form of GELU {str(numerics["gelu"])[:40]!r}.')
    if numerics.get('pre_logits_activation', 'tanh') not in ('tanh', 'relu'):
        raise UserError(f'{path}: unknown activation of the pre-logits.')
