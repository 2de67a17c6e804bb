"""From pictures to a model's input, as evaluation does it, and its record in a JSON file."""

import json
import numbers
import os
from dataclasses import asdict, dataclass, replace
from types import SimpleNamespace

import numpy as np

from common.data.normalize import Preprocess
from common.data.pixels import to_array
from common.data.transforms import FILTERS, ResizeCentreCrop
from common.errors import UserError, suggest

FILE_NAME = 'preprocessing.json'


@dataclass(frozen=True)
class Preprocessing:
    """Resize the shorter side to floor(image_size / crop_pct), crop, then (x / 255 - mean) / std.

    image_size: pixels, height = width. interpolation: bicubic, bilinear, lanczos or nearest.
    mean, std: of R, G, B in [0, 1]. class_names: list of str, or None.
    """

    image_size: int
    crop_pct: float
    interpolation: str
    mean: list
    std: list
    class_names: list | None = None

    def crop(self, image):
        """Return the part of a PIL RGB image that the model sees, image_size a side."""
        return ResizeCentreCrop(self.image_size, self.crop_pct, self.interpolation)(image)

    def normalize(self, crops):
        """Return the model's input, float32 [B, 3, S, S], of cropped PIL images."""
        data = SimpleNamespace(IMAGENET_MEAN=self.mean, IMAGENET_STD=self.std)
        pixels = np.stack([to_array(crop) for crop in crops])
        return Preprocess(SimpleNamespace(DATA=data))(pixels).numpy()

    def name_class(self, index):
        """Return the name of a class, or its number as text where names are not known."""
        return str(index) if self.class_names is None else self.class_names[index]

    def replace_names(self, class_names):
        """Return the same with other class names."""
        return replace(self, class_names=class_names)

    def save(self, folder):
        """Write preprocessing.json into a folder."""
        with open(os.path.join(folder, FILE_NAME), 'w', encoding='utf-8') as file:
            json.dump(asdict(self), file, ensure_ascii=False, indent=1)
            file.write('\n')


def read_config(config, class_names=None):
    """Return the Preprocessing of a config tree."""
    data = config.DATA
    if data.IMAGE_CHANNELS != 3:
        raise UserError(f'DATA.IMAGE_CHANNELS {data.IMAGE_CHANNELS}: pictures are read as RGB, '
                        'so only models of 3 channels can be used here.')
    return Preprocessing(data.IMAGE_SIZE, data.CROP_PCT, data.INTERPOLATION,
                         list(data.IMAGENET_MEAN), list(data.IMAGENET_STD), class_names)


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


def read_labels(path):
    """Return the class names of a text file, one a line. Raises UserError."""
    try:
        with open(path, encoding='utf-8-sig') as file:
            names = [line.strip() for line in file.read().rstrip().splitlines()]
    except OSError as error:
        raise UserError(f'Cannot read the labels {path}: {error.strerror}.') from None
    except UnicodeDecodeError:
        raise UserError(f'{path} is not a UTF-8 text file.') from None
    if not names:
        raise UserError(f'{path} is empty; one class name a line is expected.')
    return names


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
