"""The preprocessing of an exported model, in a JSON file beside it, and lists of class names."""

import json
import numbers
import os
from dataclasses import asdict

from common.data.preprocessing import Preprocessing
from common.data.transforms import FILTERS
from common.errors import UserError, suggest

FILE_NAME = 'preprocessing.json'


def write_folder(preprocessing: Preprocessing, folder: str) -> None:
    """Write preprocessing.json into a folder."""
    with open(os.path.join(folder, FILE_NAME), 'w', encoding='utf-8') as file:
        json.dump(asdict(preprocessing), file, ensure_ascii=False, indent=1)
        file.write('\n')


def read_folder(folder):
    """Return the Preprocessing beside an exported model. Raises UserError naming the file."""
    path = os.path.join(folder, FILE_NAME)
    try:
        with open(path, encoding='utf-8') as file:
            values = json.load(file)
    except FileNotFoundError:
        raise UserError(f'{folder} is no exported model: it has no {FILE_NAME}. '
                        'Make one with export_model.py.') from None
    except OSError as error:
        raise UserError(f'Cannot read {path}: {error.strerror}.') from None
    except ValueError as error:
        raise UserError(f'{path} is not JSON: {error}.') from None
    try:
        preprocessing = Preprocessing(**values)
    except TypeError:
        raise UserError(f'{path}: expected the keys '
                        f'{", ".join(Preprocessing.__dataclass_fields__)}.') from None
    _check(preprocessing, path)
    return preprocessing


def check_class_names(names, num_classes, source):
    """Raise UserError if there are names, but not one for each class."""
    if names is not None and len(names) != num_classes:
        raise UserError(f'{source} has {len(names)} class names, the model {num_classes} classes.')


def _check(preprocessing, path):
    p = preprocessing
    if p.interpolation not in FILTERS:
        raise UserError(f'{path}: unknown interpolation {p.interpolation!r}.'
                        f'{suggest(p.interpolation, FILTERS)}')
    if type(p.image_size) is not int or not 0 < p.image_size <= 10_000:
        raise UserError(f'{path}: image_size must be a number of pixels, not {p.image_size!r}.')
    if not _is_number(p.crop_pct) or not 0.05 <= p.crop_pct <= 1:
        raise UserError(f'{path}: crop_pct must be from 0.05 to 1, not {p.crop_pct!r}.')
    for name, values in (('mean', p.mean), ('std', p.std)):
        if not isinstance(values, list) or len(values) != 3 or not all(map(_is_number, values)):
            raise UserError(f'{path}: {name} must be three numbers, not {values!r}.')
    if min(p.std) <= 0:
        raise UserError(f'{path}: std must be above 0, not {p.std}.')
    names = p.class_names
    if names is not None and (
            not isinstance(names, list) or not all(isinstance(name, str) for name in names)):
        raise UserError(f'{path}: class_names must be a list of text.')


def _is_number(value):
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
