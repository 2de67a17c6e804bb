"""The data sets: which images, labels and class names, and how one sample is made.

Where the bytes of a sample lie is the business of a Reader (common.data.readers).

A sample is `dataset[(epoch, index)]`: (uint8 [S, S, 3], label, index). Its random
generator is seeded by (SEED, epoch, index), so that it is the same whatever the
number of workers and processes. A new data set is a function and a line in
DATASETS.
"""

import logging
import os
import zlib

import numpy as np
from PIL import Image

from common.data.digits import load_digits_rgb
from common.data.folders import list_folder
from common.data.images import ImageError
from common.data.lists import has_loose_images, read_list, scan_classes, scan_folder
from common.data.pixels import to_array
from common.data.readers import Reader
from common.data.table import SampleTable, choose_part
from common.errors import UserError, suggest

logger = logging.getLogger(__name__)

LIST_NAMES = {True: 'train_list.txt', False: 'val_list.txt'}    # by is_train
PART_NAMES = {'train', 'val', 'test', 'validation'}
DIGITS_VAL_FRACTION = 0.25
SKIP_ATTEMPTS = 100         # unreadable images in a row before SKIP_CORRUPT gives up


def build_dataset(config, is_train, transform):
    """Return the data set named by config.DATA.DATASET: its training or its validation part.

    transform: callable (PIL image, numpy Generator) -> PIL image of the model's
    input size. Raises UserError if the data is missing or does not fit the config.
    """
    dataset = open_dataset(config, is_train)
    dataset.check_files()
    dataset.transform = transform
    return dataset


def open_dataset(config, is_train):
    """Return the data set without a transform, its files not looked for yet."""
    name = config.DATA.DATASET
    if config.DATA.IMAGE_CHANNELS != 3:
        raise UserError(f'DATA.IMAGE_CHANNELS must be 3, not {config.DATA.IMAGE_CHANNELS}: images '
                        'are read as RGB.')
    if name not in DATASETS:
        raise UserError(f'Unknown data set {name!r}.{suggest(name, DATASETS)}')
    dataset = DATASETS[name](config, is_train)
    if config.DATA.VAL_FRACTION and not dataset.is_split and not is_train:
        logger.info('Not used: DATA.VAL_FRACTION %g (the data has validation images of its own)',
                    config.DATA.VAL_FRACTION)
    if config.DATA.LABELS:
        dataset.class_names = _read_class_names(config.DATA.LABELS, dataset.num_classes)
    _check_classes(dataset, config)
    return dataset


class Dataset:
    """Samples made from images by a transform.

    labels: int [N]. class_names: list of str, or None where the source has none. is_split:
    whether VAL_FRACTION divides its images into training and validation.
    num_classes: number of classes that labels can name.
    """

    def __init__(self, config, is_train, labels, class_names):
        self.name = config.DATA.DATASET
        self.is_train = is_train
        self.seed = config.SEED
        self.skip_corrupt = is_train and config.DATA.SKIP_CORRUPT
        self.labels = labels
        self.class_names = class_names
        self.is_split = False
        self.transform = None

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, key):
        """Return (uint8 [S, S, 3], label, index) of an (epoch, index). Raises ImageError.

        With SKIP_CORRUPT an unreadable training image is replaced by the next
        readable one, whose index is returned.
        """
        epoch, index = key
        seed = np.random.SeedSequence([self.seed, epoch, index])
        rng = np.random.Generator(np.random.PCG64(seed))
        image, index = self._read_or_skip(index)
        try:
            array = to_array(self.transform(image, rng))
        except ImageError as error:
            raise ImageError(f'{self.describe_sample(index)}: {error}') from None
        return array, int(self.labels[index]), index

    @property
    def num_classes(self):
        if self.class_names is not None:
            return len(self.class_names)
        return int(self.labels.max()) + 1

    def checksum(self):
        """Return a number that differs between processes with other samples."""
        return zlib.crc32(np.ascontiguousarray(self.labels))

    def read(self, index):
        """Return the PIL image (RGB) of a sample, untransformed."""
        raise NotImplementedError

    def check_files(self):
        """Raise UserError if files are missing that should be there."""

    def describe_sample(self, index):
        """Return the path of a sample, or whatever else tells a person which it is."""
        return f'{self.name} {"training" if self.is_train else "validation"} image {index}'

    def describe(self):
        """Return one line for the log."""
        part = 'training' if self.is_train else 'validation'
        return f'{self.name}: {len(self):,} {part} images, {self.num_classes:,} classes'

    def _read_or_skip(self, index):
        for attempt in range(SKIP_ATTEMPTS if self.skip_corrupt else 1):
            candidate = (index + attempt) % len(self)
            try:
                return self.read(candidate), candidate
            except ImageError as error:
                last_error = error
        if self.skip_corrupt:
            raise ImageError(f'{SKIP_ATTEMPTS} unreadable images in a row; the last: {last_error}')
        raise last_error


class StoredDataset(Dataset):
    """Encoded images, fetched by a reader when they are asked for."""

    def __init__(self, config, is_train: bool, reader: Reader,
                 class_names: list[str] | None = None):
        super().__init__(config, is_train, reader.table.labels, class_names)
        self.reader = reader

    def checksum(self) -> int:
        return self.reader.table.checksum()

    def read(self, index: int) -> Image.Image:
        return self.reader.read_image(index)

    def check_files(self) -> None:
        self.reader.check()

    def describe_sample(self, index: int) -> str:
        return self.reader.describe(index)

    def describe(self) -> str:
        return f'{super().describe()} from {self.reader.origin}'


class ArrayDataset(Dataset):
    """Images in memory. images: uint8 [N, height, width, 3]."""

    def __init__(self, config, is_train, images, labels, class_names):
        super().__init__(config, is_train, labels, class_names)
        self.images = images

    def read(self, index):
        return Image.fromarray(self.images[index])


def build_files(config, is_train):
    """Image files with train_list.txt and val_list.txt beside them, or else in class folders."""
    root = find_root(config.DATA.DATA_PATH)
    source, other = (
        os.path.join(root, LIST_NAMES[part]) for part in (is_train, not is_train))
    if os.path.exists(source):
        return StoredDataset(config, is_train, read_list(source, root, config.MODEL.NUM_CLASSES))
    if os.path.exists(other):       # its labels need not be the order of the folders
        raise UserError(f'There is no {source}, although there is {other}.')
    return build_folders(config, is_train)


def build_folders(config, is_train):
    """One folder a class, in train/ and val/, or in one folder that VAL_FRACTION splits."""
    root = find_root(config.DATA.DATA_PATH)
    folders = {part: is_part(root, part) for part in ('train', 'val')}
    fraction = config.DATA.VAL_FRACTION
    if all(folders.values()):
        class_names = _match_classes(root)
        reader = scan_folder(root, 'train' if is_train else 'val', class_names)
        return StoredDataset(config, is_train, reader, class_names)
    if folders['val']:
        if is_train:
            raise UserError(f'{root} has no train folder to train on, only val.')
        return StoredDataset(config, is_train, *_scan_part(root, 'val'))
    reader, class_names = _scan_part(root, 'train' if folders['train'] else '')
    if fraction > 0:
        reader = reader.select(choose_part(reader.table, fraction, is_train))
    elif not is_train:
        raise UserError(
            f'{root} has no val folder. Add one, or split a share off the images for '
            f'validation: -opts DATA.VAL_FRACTION 0.1')
    dataset = StoredDataset(config, is_train, reader, class_names)
    dataset.is_split = True
    return dataset


def build_digits(config, is_train):
    """The embedded digits; a quarter is for validation unless VAL_FRACTION says otherwise."""
    if config.DATA.DATA_PATH:
        raise UserError(f'-data_path={config.DATA.DATA_PATH} is given, and DATA.DATASET digits is '
                        'the set that comes with the code. Name another, such as '
                        '-dataset=imagefolder.')
    images, labels = load_digits_rgb()
    table = SampleTable()
    for index, label in enumerate(labels):
        table.append(b'%d' % index, label)
    chosen = choose_part(table, config.DATA.VAL_FRACTION or DIGITS_VAL_FRACTION, is_train)
    dataset = ArrayDataset(
        config, is_train, images[chosen], labels[chosen], [str(digit) for digit in range(10)])
    dataset.is_split = True
    return dataset


def build_cifar(config, is_train):
    """CIFAR-10 or CIFAR-100, by config.DATA.DATASET."""
    from common.data.cifar import load_cifar  # imports Paddle, which other data sets need not

    return ArrayDataset(
        config, is_train, *load_cifar(config.DATA.DATASET, config.DATA.DATA_PATH, is_train))


DATASETS = {
    'imagenet2012': build_files,
    'imagefolder': build_files,
    'cifar10': build_cifar,
    'cifar100': build_cifar,
    'digits': build_digits,
}


def find_root(data_path):
    """Return the data set's root for a path that is the root, or its train or val folder."""
    if not data_path:
        raise UserError('This data set needs its folder: -data_path=DIR')
    path = os.path.abspath(os.path.expanduser(data_path))
    if not os.path.isdir(path):
        raise UserError(f'No such folder: {data_path} (-data_path). It must hold the data set.')
    if any(os.path.exists(os.path.join(path, name)) for name in LIST_NAMES.values()):
        return path
    if any(is_part(path, part) for part in ('train', 'val')):
        return path
    if os.path.basename(path) in ('train', 'val'):
        return os.path.dirname(path)
    return path


def is_part(root: str, part: str) -> bool:
    """Tell whether a folder "train" or "val" is a part of the data, and not a class of that name.

    A class has pictures of its own and other classes beside it.
    """
    folder = os.path.join(root, part)
    if not os.path.isdir(folder):
        return False
    inside, beside = list_folder(folder), set(list_folder(root).folders) - {part}
    is_class = inside.pictures and not inside.folders and beside and not beside & PART_NAMES
    return not is_class


def _scan_part(root, part):
    """Return (reader, class_names) of a folder of class folders."""
    folder = os.path.join(root, part) if part else root
    class_names = scan_classes(folder)
    if not class_names:
        if has_loose_images(folder):
            raise UserError(
                f'{folder} has images but no class folders, so their labels are unknown. Sort '
                f'them into one folder a class, or add {part or "train"}_list.txt.')
        raise UserError(f'{folder} is empty: no class folders with images in it.')
    return scan_folder(root, part, class_names), class_names


def _match_classes(root):
    """Return the class names of train/ and val/. Raises UserError if they differ."""
    train, val = (scan_classes(os.path.join(root, part)) for part in ('train', 'val'))
    if train == val and train:
        return train
    for part, names in (('train', train), ('val', val)):
        folder = os.path.join(root, part)
        if not names and has_loose_images(folder):
            raise UserError(
                f'{folder} has images but no class folders, so their labels are unknown. Sort '
                f'them into one folder a class, or add {part}_list.txt.')
        if not names:
            raise UserError(f'{folder} is empty: no class folders with images in it.')
    only = [f'only in train: {name}' for name in sorted(set(train) - set(val))]
    only += [f'only in val: {name}' for name in sorted(set(val) - set(train))]
    more = f' and {len(only) - 3} more' if len(only) > 3 else ''
    raise UserError(
        f'{root}: train and val have different class folders, so their labels would not mean '
        f'the same: {", ".join(only[:3])}{more}.')


def _check_classes(dataset, config):
    num_classes = config.MODEL.NUM_CLASSES
    if dataset.num_classes > num_classes:
        raise UserError(
            f'{dataset.describe()}: more than the model has, {num_classes}. '
            f'Use -num_classes={dataset.num_classes}.')


def _read_class_names(path, num_classes):
    try:
        with open(path, encoding='utf-8-sig') as file:
            names = [line.strip() for line in file if line.strip()]
    except OSError as error:
        raise UserError(f'Cannot read DATA.LABELS {path}: {error.strerror}.') from None
    except UnicodeDecodeError:
        raise UserError(f'DATA.LABELS {path} is not UTF-8 text.') from None
    if len(names) < num_classes:
        raise UserError(
            f'DATA.LABELS {path} names {len(names)} classes, one a line; the labels need '
            f'{num_classes} names.')
    return names
