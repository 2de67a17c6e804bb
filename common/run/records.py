"""What a run finds is compared with what its weights, or the run that it continues, record."""

import logging
import os
import zlib
from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np
from yacs.config import CfgNode

from common.config import get_value, read_dump
from common.data.classes import (
    IMAGENET,
    are_same,
    describe_difference,
    list_known_names,
    match_classes,
)
from common.data.datasets import Dataset
from common.data.images import show_path
from common.errors import UserError
from common.option import show
from common.project import Project
from common.weights import LoadReport

logger = logging.getLogger(__name__)

# Beside a project's fixed options, what the weights are of no use without.
FIXED = ('MODEL.NUM_HEADS', 'MODEL.POOL', 'DATA.IMAGENET_MEAN', 'DATA.IMAGENET_STD')
SIZED_FILES = 4096          # whose sizes tell whether files have changed; all would take minutes


def match_data(datasets: Sequence[Dataset], names: Sequence[str], source: str) -> None:
    """Number the classes of the data as the model does, by their names; say so where it matters.

    Data without names stays as it is. Raises UserError where the data has other classes.
    """
    for dataset in datasets:
        found = dataset.class_names
        if found is None or list(found) == list(names):
            continue
        mapping = match_classes(found, names, dataset.describe(), source)
        dataset.relabel(mapping, list(names))
        part = name_part(dataset)
        if len(found) < len(names):
            present = set(mapping)
            absent = [show_path(name) for label, name in enumerate(names) if label not in present]
            logger.info('The %s data has %d of the %d classes of %s, matched by name (without '
                        '%s%s); the model chooses among all.', part, len(found), len(names),
                        source, ', '.join(absent[:3]), ', ...' if absent[3:] else '')
        elif mapping != sorted(mapping):
            logger.info('The %s data has the classes of %s in another order: matched by name.',
                        part, source)


def match_evaluated(report: LoadReport, dataset: Dataset, num_classes: int) -> None:
    """Match validation data with the weights that are evaluated. Raises UserError."""
    names = list_known_names(report.class_names, num_classes, dataset.class_names)
    if names is not None:
        match_data([dataset], names, report.source)
    elif dataset.class_names is not None and len(dataset.class_names) != num_classes:
        logger.warning('%s does not say the names of its %d classes, and the data has %d: label 0 '
                       'is taken for the first of them, and so on.', report.source, num_classes,
                       len(dataset.class_names))


def match_fine_tuned(report: LoadReport, datasets: Sequence[Dataset], num_classes: int,
                     heads: tuple[str, ...]) -> None:
    """Match training data with the head of the weights that training begins from, if it is kept."""
    is_new = any(name.startswith(heads) for name in (*report.replaced, *report.missing))
    names = list_known_names(report.class_names, num_classes, datasets[0].class_names)
    if names is not None and not is_new:
        match_data(datasets, names, report.source)


def check_head(dataset: Dataset, num_classes: int) -> None:
    """Compare the size of the head with the data's classes. Raises UserError before training.

    What is called ImageNet may be a part of it, and lists may lack classes: that is said.
    """
    if dataset.num_classes >= num_classes:
        return
    if dataset.class_names is not None and dataset.name != IMAGENET:
        raise UserError(f'{dataset.describe()}: fewer than the model has, {num_classes}. '
                        f'Use -num_classes={dataset.num_classes}.')
    logger.warning('The training data has labels 0 to %d, and the model %d classes: those above '
                   'have no image.', dataset.num_classes - 1, num_classes)


def match_continued(checkpoint: dict[str, Any], datasets: Sequence[Dataset], config: CfgNode,
                    project: Project) -> None:
    """Compare a run with the checkpoint that it continues from. Raises UserError.

    The same classes in another order are matched; other data is said.
    """
    source = checkpoint['path']
    check_options(checkpoint['config'], source, config, project)
    recorded = checkpoint['class_names']
    for dataset in datasets if recorded else ():
        names = dataset.class_names
        if names is not None and not are_same(names, recorded):
            raise UserError(describe_difference(names, recorded, dataset.describe(), source))
    if recorded:
        match_data(datasets, recorded, source)
    for dataset in datasets:
        compare_data((checkpoint['data'] or {}).get(name_part(dataset)), dataset)


def check_options(text: str | None, source: str, config: CfgNode, project: Project) -> None:
    """Raise UserError for options whose change would make the saved weights another model."""
    if text is None:                            # PaddleViT's
        return
    saved = read_dump(text, f'The config recorded in {source}')
    wrong = [key for key in (*FIXED, *project.fixed_options)
             if key in saved and saved[key] != get_value(config, key)]
    if wrong:
        was = ', '.join(f'{key} {show(saved[key])}' for key in wrong)
        now = ', '.join(f'{key} {show(get_value(config, key))}' for key in wrong)
        raise UserError(f'{source} was trained with {was}; now it is {now}. These go with the '
                        'weights: set them as they were, or begin anew with -pretrained.')


def describe_data(datasets: Sequence[Dataset]) -> dict[str, dict[str, int]]:
    """Return what a checkpoint records of the data: {part: {images, checksum, sizes}}."""
    return {name_part(dataset): identify(dataset) for dataset in datasets}


def identify(dataset: Dataset) -> dict[str, int]:
    """Return numbers by which other data is noticed: of names and labels, and of files' sizes."""
    sizes = array('q')
    for index in np.unique(np.linspace(0, max(len(dataset) - 1, 0), SIZED_FILES).astype(int)):
        path = dataset.find_file(int(index)) if len(dataset) else None
        try:
            sizes.append(-1 if path is None else os.path.getsize(path))
        except OSError:                         # which reading it will say, if it comes to that
            sizes.append(-1)
    return {'images': len(dataset), 'checksum': dataset.checksum(), 'sizes': zlib.crc32(sizes)}


def compare_data(saved: dict[str, int] | None, dataset: Dataset) -> None:
    """Warn where a part of the data is not what it was in the run that is continued."""
    now = identify(dataset)
    if not saved or saved == now:
        return
    if saved['images'] != now['images']:
        change = f'{saved["images"]:,} images then, {now["images"]:,} now'
    elif saved['checksum'] != now['checksum']:
        change = 'files or labels have been exchanged'
    else:
        change = 'files have been changed'
    logger.warning('The %s data is not that of the run that is continued: %s. The run goes on, but '
                   'not as it would have: %s.', name_part(dataset), change,
                   'its losses differ' if dataset.is_train else 'its accuracies are not comparable')


def name_part(dataset: Dataset) -> str:
    """Return what a part of the data is called."""
    return 'training' if dataset.is_train else 'validation'
