"""Looks over a data set before it is trained on, and writes list files.

Reports classes, counts, missing and unreadable files, whether training and
validation mean the same by a label, and how many images each class has.
"""

import argparse
import contextlib
import functools
import os
import sys
from collections import Counter, defaultdict
from multiprocessing.pool import ThreadPool
from typing import Any

import numpy as np
from tqdm import tqdm
from yacs.config import CfgNode

from common.cli import FlagParser, find_config
from common.data.classes import ANY_LABEL, write_class_names
from common.data.datasets import (
    DATASETS,
    Dataset,
    StoredDataset,
    build_folders,
    open_dataset,
    read_settings,
)
from common.data.images import LOSSES, ImageError, show_path
from common.data.lists import LABELS_NAME, LIST_NAMES, write_list
from common.data.readers import ListedReader
from common.data.trees import FolderTree, open_tree
from common.errors import UserError, report_errors
from common.project import Project
from common.terminal import is_terminal, say

SHOWN = 20                  # problems and classes that are printed in full
BAR_WIDTH = 40
PARTS = {True: 'train', False: 'val'}       # by is_train

DESCRIPTION = 'Check a data set: classes, counts, missing and unreadable images, labels.'
EXAMPLES = """examples:
  python check_data.py -dataset=imagenet2012 -data_path=/dataset/imagenet
  python check_data.py -dataset=imagefolder -data_path=/my/pictures -write_lists

exit code: 0 nothing found, 1 problems found, 2 the data set cannot be read at all
"""


def main(project: Project, argv: list[str] | None = None) -> int:
    """Run the command line of a model directory. Returns the exit code."""
    return report_errors(_run, project, sys.argv[1:] if argv is None else argv)


def _run(project, argv):
    arguments = _parse_arguments(argv)
    config = _read_config(project, arguments)
    if arguments.write_lists:
        write_lists(config)
    return 1 if check_data(config, arguments.fast, arguments.num_workers) else 0


def check_data(config: CfgNode, fast: bool = False, num_workers: int = 1) -> list[str]:
    """Print a report on both parts of the data set. Returns the problems found, as texts.

    fast: open the files without decoding their pixels. num_workers: threads.
    Raises UserError if a part cannot be read at all, once what can be read is reported.
    """
    datasets, problems, failures = {}, [], []
    for is_train in (True, False):
        dataset, failure = open_part(config, is_train)
        if failure is not None:
            failures.append(failure)
        if dataset is None:
            continue
        datasets[is_train] = dataset
        say(dataset.describe())
        print_histogram(dataset)
        problems += find_unreadable(dataset, fast, num_workers)
    if len(datasets) == 2:
        problems += compare_parts(datasets[True], datasets[False])
    for problem in problems[:SHOWN]:
        say(f'  {problem}')
    if len(problems) > SHOWN:
        say(f'  ... and {len(problems) - SHOWN:,} more')
    if failures:
        raise failures[0]
    say(f'{len(problems):,} problems found.' if problems else 'No problem found.')
    return problems


def open_part(config: CfgNode, is_train: bool) -> tuple[Dataset | None, UserError | None]:
    """Return (data set, None); where it does not fit the config (data set or None, UserError)."""
    try:
        return open_dataset(config, is_train), None
    except UserError as error:
        relaxed = config.clone()
        relaxed.defrost()
        relaxed.MODEL.NUM_CLASSES = ANY_LABEL
        for open_again in (open_dataset, _open_folder):
            with contextlib.suppress(UserError):
                return open_again(relaxed, is_train), error
        return None, error


def _open_folder(config, is_train):
    """Return the class folders of a part, whatever the other part holds. Raises UserError."""
    if config.DATA.DATASET not in ('imagenet2012', 'imagefolder'):
        raise UserError(f'{config.DATA.DATASET} has no class folders.')
    tree = open_tree(config.DATA.DATA_PATH)
    part = PARTS[is_train]
    if not tree.has_folder(part):
        raise UserError(f'{tree.describe()} has no {part} folder.')
    class_names = tree.scan_classes(part)
    return StoredDataset(read_settings(config, is_train), tree.scan(part, class_names),
                         class_names)


def print_histogram(dataset: Dataset) -> None:
    """Print how many images each class has; with many classes, how many have about how many."""
    counts = np.bincount(dataset.labels, minlength=dataset.num_classes)
    if len(counts) <= SHOWN:
        names = dataset.class_names or [str(label) for label in range(len(counts))]
        rows = [(show_path(name), count) for name, count in zip(names, counts)]
    else:
        sizes, edges = np.histogram(counts, bins=min(10, counts.max() - counts.min() + 1))
        rows = [(f'{low:,.0f} to {high:,.0f} images', size)
                for low, high, size in zip(edges, edges[1:], sizes)]
    width = max(len(name) for name, _ in rows)
    most = max(1, *(count for _, count in rows))
    for name, count in rows:
        say(f'  {name:>{width}} {"#" * round(BAR_WIDTH * count / most):{BAR_WIDTH}} {count:,}')
    say(f'  images a class: {counts.min():,} to {counts.max():,}, '
          f'median {np.median(counts):,.0f}')


def find_unreadable(dataset: Dataset, fast: bool, num_workers: int) -> list[str]:
    """Return one text for each image that is missing, is damaged or is no image.

    And one for each of LOSSES, of the images that become RGB with it.
    """
    if not isinstance(dataset, StoredDataset):
        return []
    reader = dataset.reader
    look = functools.partial(_open_image if fast else _decode_image, reader)
    problems, losses = [], defaultdict(list)
    with ThreadPool(max(1, num_workers)) as pool:      # Pillow decodes outside Python's lock
        results = pool.imap(look, range(len(dataset)), chunksize=16)
        bar = tqdm(results, total=len(dataset), desc=PARTS[dataset.is_train], unit='img',
                   disable=not is_terminal(sys.stderr))
        for index, (problem, loss) in enumerate(bar):
            if problem:
                where = reader.locate(index)
                problems.append(problem if where in problem else f'{problem} ({where})')
            if loss:
                losses[loss].append(index)
    return problems + [f'{len(found):,} {PARTS[dataset.is_train]} images, such as '
                       f'{reader.describe(found[0])}: {LOSSES[loss]}'
                       for loss, found in losses.items()]


def compare_parts(train: Any, val: Any) -> list[str]:
    """Return texts on where the labels of the training and the validation part disagree."""
    problems = []
    lists = [isinstance(part, StoredDataset) and isinstance(part.reader, ListedReader)
             for part in (train, val)]
    problems += [f'{PARTS[part.is_train]} has no images' for part in (train, val) if not len(part)]
    if train.class_names != val.class_names:
        problems.append('train and val have different class names')
    absent = sorted(set(np.unique(val.labels).tolist()) - set(np.unique(train.labels).tolist()))
    if absent:
        problems.append(
            f'{len(absent)} classes of val have no training image: {_shorten(absent)}')
    empty = sorted(set(range(train.num_classes)) - set(np.unique(train.labels).tolist()))
    if empty:
        problems.append(f'{len(empty)} classes have no training image: {_shorten(empty)}')
    if all(lists):
        problems += _compare_folders(train.reader.table, val.reader.table)
    return problems


def write_lists(config: CfgNode) -> None:
    """Write train_list.txt, val_list.txt and labels.txt at the root of a folder or a table."""
    datasets, root = _open_for_lists(config)
    paths = {is_train: os.path.join(root, name) for is_train, name in LIST_NAMES.items()}
    labels = os.path.join(root, LABELS_NAME)
    class_names = datasets[True].class_names
    for path in (*paths.values(), *([labels] if class_names is not None else [])):
        if os.path.lexists(path):
            raise UserError(f'{show_path(path)} exists already. Move it away to write a new one.')
    for is_train, path in paths.items():
        write_list(datasets[is_train].reader.table, path)
        say(f'{show_path(path)}: {len(datasets[is_train]):,} images')
    if class_names is None:
        return
    try:
        write_class_names(labels, class_names)
    except OSError as error:
        raise UserError(f'Cannot write {show_path(labels)}: {error.strerror}.') from None
    say(f'{show_path(labels)}: {datasets[True].num_classes:,} class names')


def _open_for_lists(config):
    """Return ({is_train: its data set}, the folder that paths are relative to)."""
    data = config.DATA
    if data.DATASET == 'csv':
        datasets = {is_train: open_dataset(config, is_train) for is_train in (True, False)}
        return datasets, os.fsdecode(datasets[True].reader.root)
    if data.DATASET not in ('imagenet2012', 'imagefolder'):
        raise UserError(f'-write_lists is for files in folders or in a table, not for '
                        f'{data.DATASET}.')
    tree = open_tree(data.DATA_PATH)
    if not isinstance(tree, FolderTree):
        raise UserError(f'-write_lists is for files in folders or in a table, not for '
                        f'{tree.describe()}, whose pictures are no files.')
    return {is_train: build_folders(config, is_train, tree) for is_train in (True, False)}, \
        tree.root


def _compare_folders(train, val):
    """Compare the labels that the two lists give to images in folders of one name."""
    train_labels, val_labels = _map_folders(train), _map_folders(val)
    problems = [
        f'images in folders {show_path(folder)!r} have label '
        f'{_shorten(sorted(train_labels[folder]))} in the training list and '
        f'{_shorten(sorted(val_labels[folder]))} in the validation list'
        for folder in sorted(train_labels.keys() & val_labels.keys())
        if train_labels[folder] != val_labels[folder]]
    paths = set(train.iterate_names())
    shared = [name for name in val.iterate_names() if name in paths]
    if shared:
        problems.append(f'{len(shared)} images are in both lists, such as {show_path(shared[0])}')
    twice = [path for path, count in
             Counter(train.iterate_names()).items() if count > 1]
    if twice:
        problems.append(
            f'{len(twice)} images are in the training list more than once, such as '
            f'{show_path(twice[0])}')
    return problems


def _map_folders(table):
    """Return {name of the folder that holds an image: set of labels}."""
    labels = {}
    for name, label in zip(table.iterate_names(), table.labels.tolist()):
        folder = os.path.basename(os.path.dirname(name))
        labels.setdefault(folder, set()).add(label)
    return labels


def _decode_image(reader, index):
    """Return (what is wrong, which of LOSSES its pixels suffer), None for nothing."""
    try:
        return None, reader.read_image(index).info.get('loss')
    except ImageError as error:
        return str(error), None


def _open_image(reader, index):
    try:
        reader.open_image(index).close()
    except Exception:       # for the reason in words, decode it after all
        return _decode_image(reader, index)
    return None, None


def _shorten(items):
    text = ', '.join(str(item) for item in items[:5])
    return f'{text}, ...' if len(items) > 5 else text


def _parse_arguments(argv):
    parser = FlagParser(
        description=DESCRIPTION, epilog=EXAMPLES, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_flag('cfg', metavar='FILE', help='yaml file whose DATA options are used')
    parser.add_flag('dataset', metavar='X', help=', '.join(DATASETS))
    parser.add_flag('data_path', metavar='DIR', help='root of the data set, or its train/ or val/')
    parser.add_flag('num_classes', type=int, metavar='N', help='labels must be below this')
    parser.add_flag('num_workers', type=int, metavar='N', default=os.cpu_count() or 1,
                    help='threads that read images (default: one a processor)')
    parser.add_flag('fast', action='store_true', help='open the images without decoding them')
    parser.add_flag('write_lists', action='store_true',
                    help='write train_list.txt, val_list.txt and labels.txt from the class '
                    'folders first')
    parser.add_flag('opts', nargs='*', action='extend', default=[], metavar='KEY VALUE',
                    help='any options of config.py, for example DATA.VAL_FRACTION 0.1')
    return parser.parse_args(argv)


def _read_config(project, arguments):
    flags = {
        'DATA.DATASET': arguments.dataset, 'DATA.DATA_PATH': arguments.data_path,
        'MODEL.NUM_CLASSES': arguments.num_classes}
    flags = {key: value for key, value in flags.items() if value is not None}
    if arguments.num_classes is None and arguments.cfg is None and (
            arguments.dataset != 'imagenet2012'):
        flags['MODEL.NUM_CLASSES'] = ANY_LABEL      # no model is named
    path = find_config(arguments.cfg, project.folder) if arguments.cfg else None
    return project.get_config(path, flags=flags, opts=arguments.opts)
