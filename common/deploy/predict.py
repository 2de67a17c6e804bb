"""predict.py: the classes of pictures, as a table, JSON lines or CSV.

Pictures are read ahead by threads, a batch at a time, so that memory does not grow
with their number. One that cannot be read is named, and the rest are done.
"""

import argparse
import csv
import itertools
import json
import logging
import os
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, TextIO

import numpy as np
import paddle
from PIL import Image
from tqdm import tqdm

from common.cli import FlagParser
from common.data.classes import read_class_names, rename_classes
from common.data.folders import describe_left_out
from common.data.images import ImageError, show_path
from common.data.preprocessing import Preprocessing
from common.deploy import engine as engines
from common.deploy.drawing import draw_labels
from common.deploy.formats import PRECISIONS
from common.deploy.pictures import (
    OutputNames,
    Picture,
    check_output_file,
    find_pictures,
    list_inputs,
    save_output,
)
from common.deploy.preprocessing import check_class_names, load_preprocessing
from common.deploy.ranking import Ranking, format_share, rank_classes
from common.deploy.trained import FLAGS, add_model_flags, load_trained
from common.errors import RunError, UserError, report_errors
from common.files import KEEP_NAMES, Identity, note_reads, refuse_overwriting
from common.machine.environment import count_cores
from common.project import Project
from common.terminal import escape_controls, is_terminal

Forward = Callable[[paddle.Tensor], paddle.Tensor]      # images -> logits

logger = logging.getLogger(__name__)

BATCH_SIZES = (1, 4, 16)
MANY = 100              # pictures that are worth trying sizes of batches

EXAMPLES = """examples:
  python predict.py cat.jpg -pretrained=./output/train-20260101-10-00-00/best
  python predict.py pictures/ -cfg=configs/{model}.yaml \\
      -pretrained=./{model}.pdparams -labels=labels.txt -topk=1 -format=csv > classes.csv
  python predict.py 'pictures/**/*.jpg' -model=exported/ -engine=auto -save_dir=labelled
  find / -name '*.jpg' | python predict.py - -model=exported/ -format=jsonl
"""



class Reading(NamedTuple):
    """A picture that was read: `crop` for the model (PIL), or None and the error."""

    picture: Picture
    crop: Image.Image | None
    error: str | None


def main(project: Project, argv: list[str] | None = None) -> int:
    """Predict the classes of pictures; return the exit code, 1 if some could not be read.

    project: common.project.Project. argv: arguments without the script's name; None: sys.argv's.
    """
    return report_errors(_run, project, sys.argv[1:] if argv is None else argv)


def _run(project, argv):
    arguments = _parse(project, argv)
    # This also finds a wrong pattern before the model is built.
    total, inputs = list_inputs(arguments.images, arguments.save_dir)
    check_output_file(arguments.output, arguments.images)
    with note_reads() as read:
        preprocessing, predict = load_predictor(project, arguments)
    if arguments.output is not None:
        refuse_overwriting(arguments.output, read)
    arguments.batch_size = arguments.batch_size or choose_batch_size(
        predict, preprocessing.image_size, total)
    left_out = Counter()
    pictures = find_pictures(arguments.images, sys.stdin, left_out)
    started = time.perf_counter()
    try:
        with open_output(arguments.output) as file:
            failed, count = write_predictions(
                pictures, preprocessing, predict, file, arguments, total, inputs)
            file.flush()
    except BrokenPipeError:                 # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    if count > 1:
        seconds = time.perf_counter() - started
        logger.info('%d pictures in %.1f s, %.1f a second', count, seconds, count / seconds)
    if left_out:
        logger.warning('%s', describe_left_out(left_out))
    if failed:
        raise RunError(f'{failed:,} of {count:,} pictures could not be read; they are named above.')
    return 0


def choose_batch_size(predict: engines.Run, image_size: int, total: int | None) -> int:
    """Return how many pictures to compute at once: as many as are fastest, each.

    total: number of pictures, None for unknown. Measured for a moment where there are many.
    """
    if total is not None and total < MANY:
        return max(1, min(total, BATCH_SIZES[-1]))
    speeds: dict[int, float] = {}
    for size in BATCH_SIZES:
        images = np.resize(engines.make_check_images(image_size), (size, 3, image_size, image_size))
        predict(images)                     # prepares what this size needs
        started = time.perf_counter()
        predict(images)
        speeds[size] = size / (time.perf_counter() - started)
    best = max(speeds, key=lambda size: speeds[size])
    logger.info('%d pictures at once (%s)', best, ', '.join(
        f'{size}: {speed:.1f} a second' for size, speed in speeds.items()))
    return best


def load_predictor(project: Project, arguments: Any) -> tuple[Preprocessing, engines.Run]:
    """Return (Preprocessing, callable: float32 [B, 3, S, S] -> logits [B, classes])."""
    if not arguments.model:
        for name, default in (('engine', 'auto'), ('precision', '')):
            if getattr(arguments, name) != default:
                raise UserError(f'-{name} is for an exported model (-model=DIR); make one with '
                                'export_model.py.')
        trained = load_trained(project, arguments)
        return trained.preprocessing, make_dynamic_predictor(get_forward(trained.model))
    return load_exported(arguments)


def load_exported(arguments: Any) -> tuple[Preprocessing, engines.Engine]:
    """Return what an exported model does to pictures, and the Engine that runs it here."""
    for name in ('cfg', *(option.flags[0] for option in FLAGS.values()), 'opts'):
        if getattr(arguments, name):
            raise UserError(f'-{name} does not go with -model: an exported model has its own '
                            'options and preprocessing.')
    preprocessing = load_preprocessing(arguments.model)
    logits, image_size = engines.read_check(arguments.model)
    if preprocessing.image_size != image_size:
        raise UserError(f'{arguments.model} is damaged: its pictures have '
                        f'{preprocessing.image_size} pixels a side, its model takes {image_size}.')
    names, source = preprocessing.class_names, arguments.model
    if arguments.labels:
        source = arguments.labels
        names = rename_classes(names, read_class_names(source), source)
    check_class_names(names, logits.shape[1], source)
    predict = engines.load_engine(arguments.model, arguments.engine, arguments.precision)
    logger.info('%s', predict.describe())
    return preprocessing.replace_names(names), predict


def get_forward(model: paddle.nn.Layer) -> Forward:
    """Return what computes a model's logits in evaluation with the least arithmetic."""
    return getattr(model, 'forward_logits', model.forward)


def make_dynamic_predictor(forward: Forward) -> engines.Run:
    """Return a callable, images float32 [B, 3, S, S] -> logits [B, classes].

    forward: a Paddle model, or get_forward of it.
    """
    @paddle.no_grad()
    def predict(images):
        return forward(paddle.to_tensor(images)).astype('float32').numpy()
    return predict


def write_predictions(pictures: Iterable[Picture], preprocessing: Preprocessing,
                      predict: engines.Run, file: TextIO, arguments: Any, total: int | None = None,
                      inputs: AbstractSet[Identity] | None = frozenset()) -> tuple[int, int]:
    """Predict all pictures and write each one's classes; return (failures, pictures).

    total: number of pictures, None for unknown. inputs: see OutputNames.
    """
    writer = WRITERS[arguments.format](file, preprocessing)
    names = OutputNames(arguments.save_dir, inputs) if arguments.save_dir else None
    show_bar = is_terminal(sys.stderr) and not file.isatty()
    failed = count = 0
    readings = read_ahead(pictures, preprocessing, arguments.batch_size)
    with tqdm(total=total, unit='picture', disable=not show_bar, dynamic_ncols=True) as bar:
        while batch := list(itertools.islice(readings, arguments.batch_size)):
            crops = [reading.crop for reading in batch if reading.error is None]
            ranked: Iterator[Ranking] = iter(())
            if crops:
                logits = predict(preprocessing.normalize(crops))
                ranked = iter(rank_classes(logits, arguments.topk))
            for reading in batch:
                if reading.error is not None:
                    failed += 1
                    tqdm.write(escape_controls(f'error: {reading.error}'), file=sys.stderr)
                    writer.write_error(reading)
                    continue
                classes = next(ranked)
                writer.write(reading, classes)
                if names is not None:
                    save_labelled(reading.picture, classes, preprocessing, names)
            count += len(batch)
            bar.update(len(batch))
    return failed, count


def read_ahead(pictures: Iterable[Picture], preprocessing: Preprocessing,
               batch_size: int) -> Iterator[Reading]:
    """Yield the Reading of each picture, in order; threads are at most two batches ahead."""
    def read(picture):
        try:
            image = picture.read(preprocessing.exif_orientation)
            return Reading(picture, preprocessing.crop(image), None)
        except ImageError as error:
            text, path = str(error), show_path(picture.path)
            return Reading(picture, None, text if text.startswith(path) else f'{path}: {text}')

    with ThreadPoolExecutor(count_cores()) as pool:
        waiting = deque()
        for picture in pictures:
            waiting.append(pool.submit(read, picture))
            if len(waiting) > 2 * batch_size:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def save_labelled(picture: Picture, classes: Ranking, preprocessing: Preprocessing,
                  names: OutputNames) -> None:
    """Write a picture with its classes below it, as JPEG."""
    lines = [f'{format_share(share)}  {preprocessing.show_class(index)}'
             for index, share in classes]
    name, extension = os.path.splitext(picture.name)
    if extension.lower() not in ('.jpg', '.jpeg'):
        name += extension                   # a.png and a.jpg become a.png.jpg and a.jpg
    path = names.make(name, '.jpg')
    save_output(draw_labels(picture.read(preprocessing.exif_orientation), lines), path)


class TableWriter:
    """One line a class, aligned; the path stands last, on a picture's first line."""

    def __init__(self, file: TextIO, preprocessing: Preprocessing) -> None:
        self.file = file
        self.show_class = preprocessing.show_class
        names = ['class', *map(show_path, preprocessing.class_names or ())]
        self.width = min(max(len(name) for name in names), 40)
        self.file.write(f'rank  probability  {"class":{self.width}}  picture\n')

    def write(self, reading: Reading, classes: Ranking) -> None:
        path = show_path(reading.picture.path)
        for rank, (index, share) in enumerate(classes, 1):
            name = self.show_class(index)
            line = f'{rank:4}  {format_share(share):>11}  {name:{self.width}}  {path}'
            self.file.write(line.rstrip() + '\n')
            path = ''

    def write_error(self, reading: Reading) -> None:
        self.file.write(f'   -            -  {"(unreadable)":{self.width}}  '
                        f'{show_path(reading.picture.path)}\n')


class JsonWriter:
    """One JSON object a picture: image, predictions [{class, name, probability}], or error."""

    def __init__(self, file: TextIO, preprocessing: Preprocessing) -> None:
        self.file = file
        self.name_class = preprocessing.name_class

    def write(self, reading: Reading, classes: Ranking) -> None:
        self._write(image=reading.picture.path, predictions=[
            {'class': index, 'name': self.name_class(index), 'probability': round(share, 6)}
            for index, share in classes])

    def write_error(self, reading: Reading) -> None:
        self._write(image=reading.picture.path, error=reading.error)

    def _write(self, **values):
        self.file.write(json.dumps(values, ensure_ascii=False) + '\n')


class CsvWriter:
    """One row a class: image, rank, class, name, probability. Unreadable pictures have none."""

    def __init__(self, file: TextIO, preprocessing: Preprocessing) -> None:
        self.writer = csv.writer(file, lineterminator='\n')
        self.name_class = preprocessing.name_class
        self.writer.writerow(['image', 'rank', 'class', 'name', 'probability'])

    def write(self, reading: Reading, classes: Ranking) -> None:
        self.writer.writerows(
            [reading.picture.path, rank, index, self.name_class(index), f'{share:.6f}']
            for rank, (index, share) in enumerate(classes, 1))

    def write_error(self, reading: Reading) -> None:
        pass


WRITERS: dict[str, type[TableWriter | JsonWriter | CsvWriter]] = {
    'table': TableWriter, 'jsonl': JsonWriter, 'csv': CsvWriter}
ENDINGS = {'.jsonl': 'jsonl', '.json': 'jsonl', '.csv': 'csv'}      # of -output: its format


def open_output(path: str | None) -> AbstractContextManager[TextIO]:
    """Open the output, a file or the standard output.

    Names of any bytes can be written; on a terminal they are shown as text without commands.
    """
    if path is None:
        errors = KEEP_NAMES if sys.stdout.encoding.lower() == 'utf-8' else 'backslashreplace'
        if hasattr(sys.stdout, 'reconfigure'):
            sys.stdout.reconfigure(errors=errors)
        return _KeptOpen(_Shown(sys.stdout) if sys.stdout.isatty() else sys.stdout)
    try:
        return open(path, 'w', encoding='utf-8', errors=KEEP_NAMES)
    except OSError as error:
        raise UserError(f'Cannot write {path}: {error.strerror}.') from None


class _Shown:
    """A terminal that names cannot command."""

    def __init__(self, file):
        self.file = file
        self.isatty, self.flush = file.isatty, file.flush

    def write(self, text):
        return self.file.write(escape_controls(text))


class _KeptOpen:
    """A file that `with` does not close."""

    def __init__(self, file):
        self.file = file

    def __enter__(self):
        return self.file

    def __exit__(self, *error):
        return False


def add_engine_flags(parser: FlagParser) -> None:
    """Add the flags of an exported model that load_predictor reads."""
    parser.add_flag('model', metavar='DIR', help='exported model, instead of weights and a yaml')
    parser.add_flag('engine', choices=('auto', *engines.ENGINES), default='auto',
                    help='what runs an exported model (default: auto, the fastest here)')
    parser.add_flag('precision', choices=PRECISIONS, default='',
                    help='of an exported model\'s arithmetic (default: what it was exported for)')


def _parse(project, argv):
    parser = FlagParser(
        prog='predict.py', allow_abbrev=False,
        description=f'Predict the classes of pictures with {project.name}.',
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EXAMPLES.format(model=project.example_configs[1]))
    parser.add_argument('images', nargs='+', metavar='IMAGE',
                        help='picture, folder, glob, or "-" for paths from the standard input')
    add_model_flags(parser)
    add_engine_flags(parser)
    parser.add_flag('topk', type=int, default=5, metavar='N', help='classes a picture (default: 5)')
    parser.add_flag('format', choices=tuple(WRITERS),
                    help='of the output (default: by the ending of -output, else table)')
    parser.add_flag('output', metavar='FILE', help='default: the standard output')
    parser.add_flag('save_dir', metavar='DIR', help='write each picture, with its labels, here')
    parser.add_flag('batch_size', type=int, metavar='N',
                    help='pictures computed at once (default: what is fastest, tried out)')
    parser.check_names(argv)
    arguments = parser.parse_args(argv)
    if arguments.format is None:
        ending = os.path.splitext(arguments.output or '')[1].lower()
        arguments.format = ENDINGS.get(ending, 'table')
    for name in ('topk', 'batch_size'):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            raise UserError(f'-{name} must be 1 or more, not {getattr(arguments, name)}.')
    return arguments
