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
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from yacs.config import CfgNode

from common.data.classes import (
    ANY_LABEL,
    IMAGENET,
    are_among,
    are_same,
    match_classes,
    read_class_names,
    rename_classes,
)
from common.data.digits import load_digits_rgb
from common.data.images import ImageError, show_path
from common.data.lists import LABELS_NAME, LIST_NAMES
from common.data.parts import Labelled, join_parts
from common.data.pixels import to_array
from common.data.readers import FileReader, Reader
from common.data.table import SampleTable, choose_part
from common.data.trees import FolderTree, Tree, open_tree
from common.errors import UserError, suggest

logger = logging.getLogger(__name__)

DIGITS_VAL_FRACTION = 0.25
SKIP_ATTEMPTS = 100         # unreadable images in a row before SKIP_CORRUPT gives up


@dataclass(frozen=True)
class Settings:
    """What a data set takes from the config: its name, its part and how samples are drawn.

    seed: of the samples' random generators. skip_corrupt: unreadable images end nothing.
    upright: pictures are turned as EXIF's orientation says.
    """

    name: str
    is_train: bool
    seed: int
    skip_corrupt: bool = False
    upright: bool = False


def read_settings(config: CfgNode, is_train: bool) -> Settings:
    """Return what the config says of its training or its validation part."""
    return Settings(config.DATA.DATASET, is_train, config.SEED, config.DATA.SKIP_CORRUPT,
                    config.DATA.EXIF_ORIENTATION)


def build_dataset(config: CfgNode, is_train: bool, transform: Callable) -> 'Dataset':
    """Return the data set named by config.DATA.DATASET: its training or its validation part.

    transform: callable (PIL image, numpy Generator) -> PIL image of the model's
    input size. Raises UserError if the data is missing or does not fit the config.
    """
    dataset = open_dataset(config, is_train)
    dataset.check_files()
    dataset.transform = transform
    return dataset


def open_dataset(config: CfgNode, is_train: bool) -> 'Dataset':
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
        dataset.name_classes(read_class_names(config.DATA.LABELS),
                             f'DATA.LABELS {config.DATA.LABELS}')
    _check_classes(dataset, config)
    return dataset


def count_classes(config: CfgNode) -> int | None:
    """Return how many classes the training data has; None where it cannot be told.

    What is called ImageNet has 1,000, of which a part may be at hand. Data that cannot be read is
    left to whoever opens it to say.
    """
    data = config.DATA
    if data.DATASET == IMAGENET or data.DATASET not in DATASETS:
        return None
    if data.DATASET in KNOWN_COUNTS:
        return KNOWN_COUNTS[data.DATASET]
    relaxed = config.clone()
    relaxed.defrost()
    relaxed.MODEL.NUM_CLASSES = ANY_LABEL
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)       # what it says of files is said when the run opens them
    try:
        if data.LABELS:
            return len(read_class_names(data.LABELS))
        if DATASETS[data.DATASET] is build_files:
            tree = open_tree(data.DATA_PATH)
            if not tree.has_list('train') and not tree.has_list('val'):     # without every name
                return len(tree.scan_classes('train' if tree.has_folder('train') else '')) or None
        return open_dataset(relaxed, is_train=True).num_classes
    except UserError:
        return None
    finally:
        logging.disable(level)


class Dataset:
    """Samples made from images by a transform.

    labels: int [N]. class_names: list of str, or None where the source has none. is_split:
    whether VAL_FRACTION divides its images into training and validation.
    num_classes: number of classes that labels can name.
    """

    def __init__(self, settings: Settings, labels: np.ndarray, class_names: list[str] | None):
        self.name = settings.name
        self.is_train = settings.is_train
        self.seed = settings.seed
        self.skip_corrupt = settings.is_train and settings.skip_corrupt
        self.leave_out_corrupt = not settings.is_train and settings.skip_corrupt
        self.labels = labels
        self.source_labels = labels         # before relabel
        self.class_names = class_names
        self.is_split = False
        self.transform: Any = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: tuple[int, int]) -> tuple[np.ndarray, int, int]:
        """Return (uint8 [S, S, 3], label, index) of an (epoch, index). Raises ImageError.

        With SKIP_CORRUPT an unreadable training image is replaced by the next
        readable one, whose index is returned; a validation image raises, and the loader
        leaves it out.
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

    def relabel(self, mapping: list[int], class_names: list[str]) -> None:
        """Give every label l the number mapping[l]. class_names: in the new numbers' order."""
        self.labels = np.asarray(mapping, np.int32)[self.labels]
        self.class_names = list(class_names)

    def name_classes(self, names: list[str], source: str) -> None:
        """Name the classes by a labels file, whose order counts where it holds the names they have.

        source: what messages call the file. Raises UserError where it does not fit.
        """
        known = self.class_names
        if known is not None and are_among(known, names):
            self.relabel(match_classes(known, names, 'The data', source), names)
        elif known is None and len(names) < self.num_classes:
            raise UserError(f'{source} names {len(names)} classes, one a line; the labels need '
                            f'{self.num_classes} names.')
        else:
            self.class_names = rename_classes(known, names, source)

    @property
    def num_classes(self) -> int:
        if self.class_names is not None:
            return len(self.class_names)
        return int(self.labels.max()) + 1

    def checksum(self) -> int:
        """Return a number that differs between processes with other samples."""
        return zlib.crc32(np.ascontiguousarray(self.source_labels).data)

    def read(self, index: int) -> Image.Image:
        """Return the PIL image (RGB) of a sample, untransformed."""
        raise NotImplementedError

    def check_files(self) -> None:
        """Raise UserError if files are missing that should be there."""

    def find_file(self, index: int) -> bytes | None:
        """Return the path of the file that holds a sample alone, None where there is none."""
        return None

    def describe_sample(self, index: int) -> str:
        """Return the path of a sample, or whatever else tells a person which it is."""
        return f'{self.name} {"training" if self.is_train else "validation"} image {index}'

    def describe(self) -> str:
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

    def __init__(self, settings: Settings, reader: Reader, class_names: list[str] | None = None):
        super().__init__(settings, reader.table.labels, class_names)
        self.reader = reader
        reader.upright = settings.upright

    def checksum(self) -> int:
        return self.reader.table.checksum()

    def read(self, index: int) -> Image.Image:
        return self.reader.read_image(index)

    def check_files(self) -> None:
        self.reader.check()

    def find_file(self, index: int) -> bytes | None:
        return self.reader.path(index) if isinstance(self.reader, FileReader) else None

    def describe_sample(self, index: int) -> str:
        return self.reader.describe(index)

    def describe(self) -> str:
        return f'{super().describe()} from {self.reader.origin}'


class ArrayDataset(Dataset):
    """Images in memory. images: uint8 [N, height, width, 3], or gray [N, height, width]."""

    def __init__(self, settings: Settings, images: np.ndarray, labels: np.ndarray,
                 class_names: list[str] | None):
        super().__init__(settings, labels, class_names)
        self.images = images

    def read(self, index: int) -> Image.Image:
        image = Image.fromarray(self.images[index])
        return image if image.mode == 'RGB' else image.convert('RGB')


def build_files(config: CfgNode, is_train: bool) -> StoredDataset:
    """Images with train_list.txt and val_list.txt beside them, or else in class folders.

    They lie in a folder, or in a .zip or .tar file.
    """
    tree = open_tree(config.DATA.DATA_PATH)
    part, other = ('train', 'val') if is_train else ('val', 'train')
    if tree.has_list(part):
        reader = tree.read_list(part, config.MODEL.NUM_CLASSES)
        names = _read_names_beside(tree, reader)
        if is_train and config.DATA.VAL_FRACTION > 0 and not tree.has_list(other):
            return _split(config, is_train, reader, names)
        return StoredDataset(read_settings(config, is_train), reader, names)
    if tree.has_list(other) and not is_train and config.DATA.VAL_FRACTION > 0:
        reader = tree.read_list(other, config.MODEL.NUM_CLASSES)
        return _split(config, is_train, reader, _read_names_beside(tree, reader))
    if tree.has_list(other):        # its labels need not be the order of the folders
        raise UserError(f'There is no {tree.describe(LIST_NAMES[is_train])}, although there is '
                        f'{tree.describe(LIST_NAMES[not is_train])}.')
    return build_folders(config, is_train, tree)


def _read_names_beside(tree: Tree, reader: Reader) -> list[str] | None:
    """Return the class names of the labels.txt beside list files, which check_data.py writes."""
    path = os.path.join(tree.root, LABELS_NAME) if isinstance(tree, FolderTree) else ''
    if not os.path.isfile(path):
        return None
    names, needed = read_class_names(path), int(reader.table.labels.max()) + 1
    if len(names) < needed:
        logger.warning('Not used: %s has %d names, and the lists have labels up to %d', path,
                       len(names), needed - 1)
        return None
    return names


def build_folders(config: CfgNode, is_train: bool, tree: Tree) -> StoredDataset:
    """One folder a class, in train/ and val/, or in one folder that VAL_FRACTION splits."""
    has_train, has_val = tree.has_folder('train'), tree.has_folder('val')
    if has_train and has_val:
        class_names = _match_classes(tree)
        reader = tree.scan('train' if is_train else 'val', class_names)
        return StoredDataset(read_settings(config, is_train), reader, class_names)
    if has_val:
        if is_train:
            raise UserError(f'{tree.describe()} has no train folder to train on, only val.')
        return StoredDataset(read_settings(config, is_train), *_scan_part(tree, 'val'))
    reader, class_names = _scan_part(tree, 'train' if has_train else '')
    if config.DATA.VAL_FRACTION > 0:
        return _split(config, is_train, reader, class_names)
    if not is_train:
        raise UserError(
            f'{tree.describe()} has no val folder. Add one, or split a share off the images for '
            f'validation: -opts DATA.VAL_FRACTION 0.1')
    dataset = StoredDataset(read_settings(config, is_train), reader, class_names)
    dataset.is_split = True
    return dataset


def build_labelled(load: Callable[[CfgNode], dict[str, Labelled]], config: CfgNode,
                   is_train: bool) -> StoredDataset:
    """Pictures with their labels beside them: a table, shards, parquet. load: of both parts."""
    labelled, is_split = join_parts(load(config), is_train, config.DATA.VAL_FRACTION, config.EVAL,
                                    config.DATA.DATA_PATH)
    dataset = StoredDataset(read_settings(config, is_train), labelled.reader, labelled.class_names)
    dataset.is_split = is_split
    return dataset


def build_csv(config: CfgNode, is_train: bool) -> StoredDataset:
    """Image files that a table names."""
    from common.data.csv_table import load_csv

    return build_labelled(load_csv, config, is_train)


def build_shards(config: CfgNode, is_train: bool) -> StoredDataset:
    """Pictures in .tar shards, as WebDataset has them."""
    from common.data.shards import load_shards

    return build_labelled(load_shards, config, is_train)


def build_parquet(config: CfgNode, is_train: bool) -> StoredDataset:
    """Pictures in parquet files, as Hugging Face has them."""
    from common.data.parquet import load_parquet

    return build_labelled(load_parquet, config, is_train)


def build_idx(config: CfgNode, is_train: bool) -> ArrayDataset:
    """MNIST or Fashion-MNIST, by config.DATA.DATASET."""
    from common.data.idx import load_idx

    return ArrayDataset(
        read_settings(config, is_train),
        *load_idx(config.DATA.DATASET, config.DATA.DATA_PATH, is_train))


def build_digits(config: CfgNode, is_train: bool) -> ArrayDataset:
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
    dataset = ArrayDataset(read_settings(config, is_train), images[chosen], labels[chosen],
                           [str(digit) for digit in range(10)])
    dataset.is_split = True
    return dataset


def build_cifar(config: CfgNode, is_train: bool) -> ArrayDataset:
    """CIFAR-10 or CIFAR-100, by config.DATA.DATASET."""
    from common.data.cifar import load_cifar  # imports Paddle, which other data sets need not

    return ArrayDataset(
        read_settings(config, is_train),
        *load_cifar(config.DATA.DATASET, config.DATA.DATA_PATH, is_train))


DATASETS = {
    'imagenet2012': build_files,
    'imagefolder': build_files,
    'csv': build_csv,
    'shards': build_shards,
    'parquet': build_parquet,
    'cifar10': build_cifar,
    'cifar100': build_cifar,
    'mnist': build_idx,
    'fashion_mnist': build_idx,
    'digits': build_digits,
}


# Classes of the sets that have always the same.
KNOWN_COUNTS = {'cifar10': 10, 'cifar100': 100, 'mnist': 10, 'fashion_mnist': 10, 'digits': 10}


def _split(config, is_train, reader, class_names=None):
    """Return the part of the images that VAL_FRACTION chooses."""
    chosen = choose_part(reader.table, config.DATA.VAL_FRACTION, is_train)
    dataset = StoredDataset(read_settings(config, is_train), reader.select(chosen), class_names)
    dataset.is_split = True
    return dataset


def _scan_part(tree, part):
    """Return (reader, class_names) of a folder of class folders."""
    class_names = tree.scan_classes(part)
    if not class_names:
        _refuse_empty(tree, part)
    return tree.scan(part, class_names), class_names


def _match_classes(tree):
    """Return the class names of train/ and val/. Raises UserError if they differ."""
    train, val = tree.scan_classes('train'), tree.scan_classes('val')
    if train == val and train:
        return train
    for part, names in (('train', train), ('val', val)):
        if not names:
            _refuse_empty(tree, part)
    only = [f'only in train: {show_path(name)}' for name in sorted(set(train) - set(val))]
    only += [f'only in val: {show_path(name)}' for name in sorted(set(val) - set(train))]
    more = f' and {len(only) - 3} more' if len(only) > 3 else ''
    alike = ' They look alike, and are written in two forms of Unicode (NFC and NFD): rename ' \
            'those of one part.' if are_same(train, val) else ''
    raise UserError(
        f'{tree.describe()}: train and val have different class folders, so their labels would '
        f'not mean the same: {", ".join(only[:3])}{more}.{alike}')


def _refuse_empty(tree, part):
    """Raise UserError for a part without class folders."""
    if tree.count_loose(part):
        raise UserError(
            f'{tree.describe(part)} has images but no class folders, so their labels are unknown. '
            f'Sort them into one folder a class, or add {part or "train"}_list.txt.')
    raise UserError(f'{tree.describe(part)} is empty: no class folders with images in it.')


def _check_classes(dataset, config):
    num_classes = config.MODEL.NUM_CLASSES
    if dataset.num_classes > num_classes:
        raise UserError(
            f'{dataset.describe()}: more than the model has, {num_classes}. '
            f'Use -num_classes={dataset.num_classes}.')
