"""The preprocessing that a checkpoint's own files state: mean, std, crop and interpolation.

Two files are known: preprocessor_config.json of Hugging Face's image processors, and the
pretrained_cfg in timm's config.json. Either may be by anybody, so each value is checked.
"""

import math
import numbers
from typing import Any

from common.weights.containers import read_json

# Pillow's numbers, which Hugging Face's files hold.
RESAMPLING = {0: 'nearest', 1: 'lanczos', 2: 'bilinear', 3: 'bicubic'}
# The options that hold them.
CONFIG_KEYS = {'crop_pct': 'DATA.CROP_PCT', 'interpolation': 'DATA.INTERPOLATION',
               'mean': 'DATA.IMAGENET_MEAN', 'std': 'DATA.IMAGENET_STD',
               'exif_orientation': 'DATA.EXIF_ORIENTATION'}
STATED = ('crop_pct', 'interpolation', 'mean', 'std')       # by other people's files
INTERPOLATIONS = tuple(RESAMPLING.values())


def read_beside(folder: str) -> dict[str, Any]:
    """Return the preprocessing that files in a folder state, {} unless they state all of it."""
    stated = read_stated(read_json(folder, 'config.json'),
                         read_json(folder, 'preprocessor_config.json'))
    return stated if set(stated) == set(STATED) else {}


def name_options(preprocessing: dict[str, Any]) -> dict[str, Any]:
    """Return {config key: value} of a preprocessing."""
    return {CONFIG_KEYS[name]: value for name, value in preprocessing.items()}


def read_stated(config: dict, processor: dict) -> dict[str, Any]:
    """Return those of mean, std, crop_pct and interpolation that the files state.

    config: of config.json. processor: of preprocessor_config.json. {} for either: no such file.
    """
    if processor:
        return check_preprocessing(_read_processor(processor))
    stated = config.get('pretrained_cfg')
    if not isinstance(stated, dict):
        stated = config                     # older files have the keys at the top
    return check_preprocessing({
        'mean': stated.get('mean'), 'std': stated.get('std'), 'crop_pct': stated.get('crop_pct'),
        'interpolation': stated.get('interpolation')})


def check_preprocessing(values: dict[str, Any]) -> dict[str, Any]:
    """Return what makes sense of a preprocessing's values; the rest counts as not stated."""
    checked: dict[str, Any] = {name: [float(value) for value in values[name]]
               for name in ('mean', 'std') if _is_colour(values.get(name))}
    if 'std' in checked and min(checked['std']) <= 0:
        del checked['std']
    crop_pct = values.get('crop_pct')
    if _is_number(crop_pct) and 0.05 <= crop_pct <= 1:
        checked['crop_pct'] = float(crop_pct)
    if values.get('interpolation') in INTERPOLATIONS:
        checked['interpolation'] = values['interpolation']
    if isinstance(values.get('exif_orientation'), bool):        # in our own checkpoints alone
        checked['exif_orientation'] = values['exif_orientation']
    return checked


def _read_processor(processor):
    values = {'mean': processor.get('image_mean'), 'std': processor.get('image_std'),
              'interpolation': None, 'crop_pct': None}
    if processor.get('do_normalize') is False:
        values |= {'mean': [0.0] * 3, 'std': [1.0] * 3}
    resample = processor.get('resample')
    if type(resample) is int:
        values['interpolation'] = RESAMPLING.get(resample)
    edge, crop = _read_side(processor.get('size')), _read_side(processor.get('crop_size'))
    if processor.get('do_center_crop') and edge and crop and crop <= edge:
        values['crop_pct'] = crop / edge
    elif edge:
        values['crop_pct'] = 1.0
    return values


def _read_side(size):
    """Return the pixels of "size": 224, {"shortest_edge": 256} or {"height": 224, ...}."""
    if isinstance(size, dict):
        size = size.get('shortest_edge', size.get('height'))
    return size if type(size) is int and 0 < size <= 10_000 else None


def _is_colour(values):
    return isinstance(values, (list, tuple)) and len(values) == 3 and all(
        _is_number(value) and abs(value) <= 10 for value in values)


def _is_number(value):
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
