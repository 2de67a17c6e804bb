"""Pictures for int8: some to take ranges from, others to measure what it costs."""

import logging
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm
from yacs.config import CfgNode

from common.data.images import ImageError, show_path
from common.data.normalize import Preprocess
from common.data.pixels import to_array
from common.data.preprocessing import Preprocessing
from common.deploy.pictures import find_pictures
from common.errors import UserError
from common.project import Project
from common.terminal import is_terminal

NUM_CALIBRATION = 300
NUM_TEST = 2000
MIN_CALIBRATION = 8
SEED = 0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pictures:
    """crops: uint8 [N, S, S, 3]. labels: int [N], -1 where the class is not known."""

    crops: np.ndarray
    labels: np.ndarray

    @property
    def is_labelled(self) -> bool:
        return bool(len(self.labels)) and bool((self.labels >= 0).all())


def collect_from_folder(folder: str, preprocessing: Preprocessing, count: int = NUM_CALIBRATION
                        ) -> tuple[Pictures, Pictures]:
    """Return (pictures to calibrate with, others to measure with) of a folder or an archive.

    A picture in a folder that is called like a class is of that class. Of fewer than 2 * count
    pictures, half are for each. Raises UserError where there are too few.
    """
    if not os.path.exists(folder):
        raise UserError(f'-calibrate={folder}: there is no folder or archive there.')
    found = list(find_pictures([folder], ()))
    labels = {name: label for label, name in enumerate(preprocessing.class_names or ())}

    def read(place):
        picture = found[place]
        return (preprocessing.crop(picture.read(preprocessing.exif_orientation)),
                labels.get(picture.name.replace('\\', '/').split('/')[0], -1))

    order = np.random.Generator(np.random.PCG64(SEED)).permutation(len(found))
    count = min(count, len(found) // 2)
    if count < MIN_CALIBRATION:
        raise UserError(f'{folder} has {len(found)} pictures; calibrating, and measuring what it '
                        f'cost with others, takes {2 * MIN_CALIBRATION} or more.')
    calibration = _read_all(order[:count], read, 'Reading')
    test = _read_all(order[count:count + NUM_TEST], read, 'Reading')
    if labels and not test.is_labelled:
        known = int((test.labels >= 0).sum())
        logger.info('%s: %s of its folders are called like classes of the model, so accuracy is '
                    'not measured, only agreement.', folder, 'not all' if known else 'none')
    return calibration, test


def collect_from_dataset(project: Project, config: CfgNode, preprocessing: Preprocessing,
                         count: int = NUM_CALIBRATION) -> tuple[Pictures, Pictures]:
    """Return (training pictures to calibrate with, validation pictures to measure with)."""
    try:
        train, val = (project.get_dataset(config, is_train) for is_train in (True, False))
    except UserError as error:
        raise UserError(f'int8 needs pictures to calibrate with, and the data set that the model '
                        f'was trained on is not at hand ({error}) Give -calibrate=FOLDER.'
                        ) from None
    used = set()

    def read_train(index):
        used.add(train.describe_sample(index))
        return preprocessing.crop(train.read(index)), int(train.labels[index])

    def read_val(index):
        return preprocessing.crop(val.read(index)), int(val.labels[index])

    generator = np.random.Generator(np.random.PCG64(SEED))
    calibration = _read_all(generator.permutation(len(train))[:count], read_train, 'Reading')
    rest = (index for index in generator.permutation(len(val)).tolist()
            if val.describe_sample(index) not in used)
    test = _read_all([index for index, _ in zip(rest, range(NUM_TEST))], read_val, 'Reading')
    if min(len(calibration.crops), len(test.crops)) < MIN_CALIBRATION:
        raise UserError(f'{config.DATA.DATASET} has too few pictures to calibrate with '
                        f'({len(calibration.crops)}) and to measure with ({len(test.crops)}); '
                        'give -calibrate=FOLDER.')
    return calibration, test


def iterate_batches(crops: np.ndarray, preprocessing: Preprocessing, size: int = 16
                    ) -> Iterator[np.ndarray]:
    """Yield the model's input of crops uint8 [N, S, S, 3], float32 [size, 3, S, S] at a time."""
    normalize = Preprocess(preprocessing.mean, preprocessing.std)
    for start in range(0, len(crops), size):
        yield normalize(crops[start:start + size]).numpy()


def _read_all(indices: Any, read: Any, title: str) -> Pictures:
    """Read pictures; unreadable ones are named and left out."""
    crops, labels = [], []
    for index in tqdm(indices, desc=title, unit='picture', dynamic_ncols=True,
                      disable=not is_terminal(sys.stderr)):
        try:
            crop, label = read(int(index))
        except ImageError as error:
            logger.info('Left out: %s', show_path(str(error)))
            continue
        crops.append(to_array(crop))
        labels.append(label)
    if not crops:
        raise UserError('None of the pictures to calibrate with could be read.')
    return Pictures(np.stack(crops), np.array(labels))
