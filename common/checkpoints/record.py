"""Every field of a checkpoint, checked once, so that whoever uses one need not.

A checksum says that a file is as it was written, not by whom.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from common.errors import UserError

LARGEST = 1 << 53           # of counts: what a float64 holds exactly


def is_count(value: Any) -> bool:
    """Whether a value is an int from 0 to LARGEST."""
    return type(value) is int and 0 <= value <= LARGEST


def is_number(value: Any) -> bool:
    """Whether a value is a finite int or float."""
    return type(value) in (int, float) and abs(value) <= 1e300


def is_figure(value: Any) -> bool:
    """Whether a value is an int or float; a loss may be NaN before the first update is read."""
    return type(value) is float or is_number(value)


def is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def is_mapping(value: Any) -> bool:
    """Whether a value is a dict with text for keys."""
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def is_sums(value: Any) -> bool:
    """Whether a value is what Meter.state_dict gives."""
    return is_mapping(value) and set(value) == {'report', 'epoch', 'overflows'} and all(
        isinstance(value[name], (list, tuple)) and len(value[name]) == 2
        and is_figure(value[name][0]) and is_count(value[name][1])
        for name in ('report', 'epoch')) and is_count(value['overflows'])


def is_best(value: Any) -> bool:
    """Whether a value is the best validation: {'value': metric, 'epoch': epoch}."""
    return is_mapping(value) and is_number(value.get('value')) and is_count(value.get('epoch'))


def is_names(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value)


def is_data(value: Any) -> bool:
    """Whether a value is what records.describe_data gives."""
    return is_mapping(value) and all(
        is_mapping(part) and {'images', 'checksum'} <= set(part)
        and all(type(number) is int for number in part.values()) for part in value.values())


def is_numerics(value: Any) -> bool:
    """Whether a value is what describe_numerics gives."""
    return is_mapping(value) and all(
        item is None or is_text(item) or is_flag(item) or is_number(item)
        or isinstance(item, (list, tuple)) and all(map(is_count, item))
        for item in value.values())


# Each field's check, and what it must be, for the message. None is allowed where OPTIONAL.
FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    'epoch': (is_count, 'a number of epochs'),
    'update': (is_count, 'a number of updates'),
    'updates_per_epoch': (lambda value: is_count(value) and value > 0, 'a number of updates'),
    'micro_batch': (is_count, 'a number of batches'),
    'loss': (is_figure, 'a number'),
    'learning_rate': (is_number, 'a number'),
    'meter': (is_sums, 'sums of losses'),
    'best': (is_best, 'a value and an epoch'),
    'awaits_validation': (is_flag, 'true or false'),
    'has_ended': (is_flag, 'true or false'),
    'metrics_size': (is_count, 'a number of bytes'),
    'model_name': (is_text, 'text'),
    'seed': (lambda value: type(value) is int and abs(value) < 1 << 64, 'a number'),
    'world_size': (lambda value: is_count(value) and value > 0, 'a number of processes'),
    'config': (is_text, 'text'),
    'class_names': (is_names, 'names'),
    'data': (is_data, 'numbers by name'),
    'numerics': (is_numerics, 'settings by name'),
    'preprocessing': (is_mapping, 'settings by name'),
    'paddle_version': (is_text, 'text'),
    'ema_updates': (is_count, 'a number of updates'),
    'model': (is_mapping, 'tensors by name'),
    'model_ema': (is_mapping, 'tensors by name'),
    'amp_grad_scaler': (is_mapping, 'settings by name'),
}
SUMMARY: dict[str, tuple[Callable[[Any], bool], str]] = {
    'time': (is_number, 'a number of seconds'),
    'is_best': (is_flag, 'true or false'),
    **{name: FIELDS[name] for name in ('epoch', 'update', 'loss', 'model_name', 'world_size')},
}
REQUIRED = ('epoch', 'micro_batch', 'awaits_validation', 'has_ended', 'ema_updates', 'model',
            'amp_grad_scaler')


def check_record(checkpoint: dict[str, Any], path: str) -> None:
    """Raise UserError naming the first field of a checkpoint that is not what it must be."""
    for name, (is_right, wanted) in FIELDS.items():
        value = checkpoint[name]
        if value is None and name not in REQUIRED:
            continue
        if not is_right(value):
            raise UserError(f'{path} cannot be resumed from: its {name} is not {wanted} but '
                            f'{_show(value)}.' if value is not None else
                            f'{path} cannot be resumed from: it has no {name}.')
    if checkpoint['awaits_validation'] and checkpoint['loss'] is None:
        raise UserError(f'{path} cannot be resumed from: it awaits a validation and has no loss.')


def check_summary(summary: dict[str, Any]) -> float:
    """Return when a checkpoint was saved, by its trailer. Raises ValueError for a wrong field."""
    for name, (is_right, wanted) in SUMMARY.items():
        value = summary.get(name)
        if not is_right(value) and (value is not None or name == 'time'):
            raise ValueError(f'its summary is damaged: its {name} is not {wanted}')
    return float(summary['time'])


def check_tensors(tensors: dict[str, Any], what: str, path: str, finite: bool = False) -> None:
    """Raise UserError unless all are ndarrays of floating-point numbers (bool, int: buffers)."""
    for name, array in tensors.items():
        if not isinstance(array, np.ndarray) or array.dtype.kind not in 'fbiu':
            raise UserError(f'{path} cannot be resumed from: {name[:100]} of its {what} is no '
                            'tensor of numbers.')
        if finite and array.dtype.kind == 'f' and not _is_finite(array):
            raise UserError(f'{path} cannot be resumed from: NaN or infinity in {name[:100]} of '
                            f'its {what}.')


def _is_finite(array):
    with np.errstate(over='ignore', invalid='ignore'):
        if math.isfinite(array.sum(dtype=np.promote_types(array.dtype, np.float32))):
            return True
    return bool(np.isfinite(array).all())


def _show(value):
    try:
        text = repr(value) if isinstance(value, (str, int, float)) else type(value).__name__
    except ValueError:                      # a number of thousands of digits
        text = type(value).__name__
    return text if len(text) <= 60 else f'{text[:60]}...'
