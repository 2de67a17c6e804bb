"""The preprocessing of an exported model, in a JSON file beside it, and lists of class names."""

import json
import os
from dataclasses import asdict

from common.data.preprocessing import Preprocessing
from common.data.transforms import FILTERS
from common.errors import UserError, suggest
from common.files import open_regular, write_json
from common.option import show

FILE_NAME = 'preprocessing.json'
MAX_BYTES = 64 << 20            # of that file, most of them names of classes


def write_preprocessing(preprocessing: Preprocessing, folder: str) -> None:
    """Write preprocessing.json into a folder."""
    write_json(os.path.join(folder, FILE_NAME), asdict(preprocessing))


def load_preprocessing(folder: str) -> Preprocessing:
    """Return the Preprocessing beside an exported model. Raises UserError naming the file."""
    path = os.path.join(folder, FILE_NAME)
    try:
        with open_regular(path) as file:
            values = json.loads(file.read(MAX_BYTES))
    except FileNotFoundError:
        raise UserError(f'{folder} is no exported model: it has no {FILE_NAME}. '
                        'Make one with export_model.py.') from None
    except OSError as error:
        raise UserError(f'Cannot read {path}: {error.strerror}.') from None
    except (ValueError, RecursionError) as error:
        raise UserError(f'{path} is not JSON: {str(error)[:100]}.') from None
    try:
        preprocessing = Preprocessing(**values)
    except TypeError:
        raise UserError(f'{path}: expected the keys '
                        f'{", ".join(Preprocessing.__dataclass_fields__)}.') from None
    _check(preprocessing, path)
    return preprocessing


def check_class_names(names: list[str] | None, num_classes: int, source: str) -> None:
    """Raise UserError if there are names, but not one for each class."""
    if names is not None and len(names) != num_classes:
        raise UserError(f'{source} has {len(names)} class names, the model {num_classes} classes.')


def _check(preprocessing, path):
    p = preprocessing
    if not isinstance(p.interpolation, str) or p.interpolation not in FILTERS:
        raise UserError(f'{path}: unknown interpolation {show(p.interpolation)}.'
                        f'{suggest(p.interpolation, FILTERS)}')
    if type(p.image_size) is not int or not 0 < p.image_size <= 10_000:
        raise UserError(f'{path}: image_size must be a number of pixels, not {show(p.image_size)}.')
    if not _is_number(p.crop_pct) or not 0.05 <= p.crop_pct <= 1:
        raise UserError(f'{path}: crop_pct must be from 0.05 to 1, not {show(p.crop_pct)}.')
    for name, values in (('mean', p.mean), ('std', p.std)):
        if not isinstance(values, list) or len(values) != 3 or not all(map(_is_number, values)):
            raise UserError(f'{path}: {name} must be three numbers, not {show(values)}.')
    if min(p.std) < 1e-6:
        raise UserError(f'{path}: std must be above 0, not {p.std}.')
    if not isinstance(p.exif_orientation, bool):
        raise UserError(f'{path}: exif_orientation must be true or false, not '
                        f'{show(p.exif_orientation)}.')
    names = p.class_names
    if names is not None and (
            not isinstance(names, list) or not all(isinstance(name, str) for name in names)):
        raise UserError(f'{path}: class_names must be a list of text.')


def _is_number(value):
    """Whether a value is a number that float32 can hold."""
    return type(value) in (int, float) and abs(value) < 1e38
