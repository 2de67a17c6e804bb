"""results.csv in the output folder: a line for each evaluation, of all runs that write there."""

import csv
import errno
import io
import os
import time
from typing import BinaryIO

from yacs.config import CfgNode

from common.data.images import show_path
from common.files import open_own
from common.run.side_matter import append_line, end_line, go_on
from common.training.evaluate import EvalResult

NAME = 'results.csv'
# date: local time. model: MODEL.NAME. weights: as given, or a run's checkpoint. config: the file
# that repeats the run with -cfg. count: images. acc1, acc5: percent. engine: "model", or that of
# EVAL_ENGINE. seconds: of the evaluation.
COLUMNS = ('date', 'model', 'weights', 'config', 'data', 'count', 'acc1', 'acc5', 'loss', 'engine',
           'seconds')
TRIES, PAUSE_SECONDS = 20, 0.05         # for another process's line


def write_result(config: CfgNode, folder: str, weights: str, data: str, engine: str,
                 result: EvalResult) -> None:
    """Append the line of an evaluation to results.csv beside the run folder; never raises for it.

    folder: of the run. weights, data, engine: see COLUMNS.
    """
    row = (time.strftime('%Y-%m-%d %H:%M:%S'), config.MODEL.NAME, weights,
           os.path.join(folder, 'config.yaml'), data, result.images, f'{result.acc1:.2f}',
           f'{result.acc5:.2f}', f'{result.loss:.4f}', engine, f'{result.seconds:.1f}')
    with go_on(NAME):
        append_row(os.path.join(config.SAVE, NAME), [show_path(str(value)) for value in row])


def append_row(path: str, row: list[str]) -> None:
    """Append a row to a table of COLUMNS, with their names where it is new.

    Processes that append at the same time wait for each other. Raises OSError, also for a file
    that is another table.
    """
    descriptor = open_own(path, os.O_RDWR | os.O_APPEND)
    with open(descriptor, 'ab+', buffering=0) as file:
        _lock(file)             # until it is closed
        header = _format(COLUMNS)
        file.seek(0)
        found = file.read(len(header))
        if found and found != header:
            raise OSError(errno.EINVAL, f'{path} is there with other columns', path)
        end_line(file)
        append_line(file, (b'' if found else header) + _format(row))


def _format(row):
    text = io.StringIO()
    csv.writer(text, lineterminator='\n').writerow(row)
    return text.getvalue().encode('utf-8', 'backslashreplace')


def _lock(file: BinaryIO) -> None:
    """Take the file's lock. Raises OSError where another process keeps it for a second.

    A file system without locks is written to without one: what is appended is a single write.
    """
    for _ in range(TRIES):
        if _try_to_lock(file):
            return
        time.sleep(PAUSE_SECONDS)
    raise OSError(errno.EAGAIN, 'another process keeps its lock', NAME)


def _try_to_lock(file):
    """Return False where another process has the lock."""
    try:
        import fcntl
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):      # Windows; a file system without locks
        return True
    return True
