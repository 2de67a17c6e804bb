"""What a run tells: its folder, log.txt, metrics.jsonl, config.yaml and the progress bar."""

import contextlib
import json
import logging
import math
import os
import shutil
import sys
import time
from logging.handlers import MemoryHandler
from typing import Any

from tqdm import tqdm
from yacs.config import CfgNode

from common.config import dump_config
from common.errors import UserError
from common.files import KEEP_NAMES, open_own, replace_file
from common.machine.distributed import get_rank
from common.run.side_matter import append_line, describe, discard_output, end_line, go_on
from common.terminal import LOGGER_NAME, PlainFormatter, is_terminal, paint

BAR = 'The progress bar'
COLOURS = {logging.WARNING: 'yellow', logging.ERROR: 'red'}
# What a run folder holds before there are results.
FIRST_FILES = {'log.txt', 'config.yaml', 'run.lock', 'pictures.csv', 'labels.txt', 'left_out.csv',
               'augmented.png'}
logger = logging.getLogger(LOGGER_NAME)

_BAR_FORMAT = ('{{desc}} {{percentage:3.0f}}%|{{bar}}| {unit} {{n_fmt}}/{{total_fmt}}, '
               '{{remaining}} left{{postfix}}')


class _TerminalHandler(logging.Handler):
    """Prints through tqdm, so that lines do not cut a progress bar in two.

    Warnings and errors are coloured, and a record with an attribute `colour` (extra=...).
    A terminal or pipe that takes no more lines is given up, which is said in log.txt.
    """

    def __init__(self):
        super().__init__()
        self.is_gone = sys.stdout is None       # of a process without a console

    def emit(self, record):
        if self.is_gone:
            return
        text = self.format(record)
        encoding = getattr(sys.stdout, 'encoding', None) or 'utf-8'
        text = text.encode(encoding, 'backslashreplace').decode(encoding)
        text = paint(text, getattr(record, 'colour', COLOURS.get(record.levelno)), sys.stdout)
        try:
            try:
                tqdm.write(text, file=sys.stdout)
            except (OSError, ValueError):       # perhaps of a bar, on the other stream
                print(text, file=sys.stdout)
            sys.stdout.flush()
        except (OSError, ValueError) as error:
            self.is_gone = True
            discard_output(sys.stdout)
            logger.warning('The standard output takes no more lines (%s); the run goes on.',
                           describe(error))


class _FileHandler(logging.Handler):
    """Appends to log.txt; lines that do not fit on the disk are lost, which is said once."""

    def __init__(self, path):
        super().__init__()
        self.said = set()
        self.file = None
        with go_on(path, self.said):
            self.file = open(       # noqa: SIM115 (closed by close)
                open_own(path, os.O_RDWR | os.O_APPEND), 'ab+', buffering=0)
            end_line(self.file)

    def emit(self, record):
        if self.file is not None:
            line = self.format(record) + '\n'
            with go_on('log.txt', self.said):
                append_line(self.file, line.encode('utf-8', 'backslashreplace'))

    def close(self):
        if self.file is not None:
            with contextlib.suppress(OSError):
                self.file.close()
        super().close()


class _HoldingHandler(MemoryHandler):
    """Keeps what nobody has seen yet."""

    def __init__(self) -> None:
        super().__init__(capacity=1000, flushLevel=logging.CRITICAL + 1)


def hold_log() -> None:
    """Keep what is logged until start_logging, which shows it: before it is known who runs."""
    logger.propagate = False
    logger.setLevel(logging.INFO)
    logger.handlers[:] = [_HoldingHandler()]


def start_logging(folder: str | None = None, quiet: bool = False) -> None:
    """Send the project's log to the terminal, and to `folder`/log.txt.

    quiet: only warnings and errors (the ranks above 0, which have no folder). What is
    logged while there is no folder yet goes to its log.txt when there is one.
    """
    early, unseen = [], []
    for handler in list(logger.handlers):
        kept = unseen if isinstance(handler, _HoldingHandler) else early
        kept += getattr(handler, 'buffer', [])
        logger.removeHandler(handler)
        handler.close()
    logger.propagate = False
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    handlers: list[logging.Handler] = [_TerminalHandler()]
    if folder is None:
        handlers.append(MemoryHandler(capacity=1000, flushLevel=logging.CRITICAL + 1))
    else:
        handlers.append(_FileHandler(os.path.join(folder, 'log.txt')))
    for handler in handlers:
        handler.setFormatter(PlainFormatter('%(asctime)s %(message)s', '%m-%d %H:%M:%S'))
        logger.addHandler(handler)
    for record in early:
        handlers[-1].handle(record)
    for record in unseen:
        if record.levelno >= logger.level:
            logger.callHandlers(record)


def make_run_folder(config: CfgNode) -> str:
    """Create <SAVE>/<train|eval>-YYYYMMDD-HH-MM-SS (with a number if taken); return its path."""
    kind = 'eval' if config.EVAL else 'train'
    name = os.path.join(config.SAVE, f'{kind}-{time.strftime("%Y%m%d-%H-%M-%S")}')
    for number in range(1, 1000):
        path = name if number == 1 else f'{name}-{number}'
        try:
            os.makedirs(path)
            return path
        except FileExistsError:
            if not os.path.isdir(path):
                break
        except OSError as error:
            raise UserError(f'Cannot write to the output folder {config.SAVE}: '
                            f'{error.strerror}. Choose another with -output.') from None
    raise UserError(f'Cannot make a run folder {name} in {config.SAVE}.')


def discard_run_folder(folder: str) -> None:
    """Remove the folder of a run that ended before it had results: none but FIRST_FILES."""
    if set(os.listdir(folder)) <= FIRST_FILES:
        start_logging()                     # closes log.txt
        shutil.rmtree(folder)


def build_run_log(config: CfgNode, folder: str) -> 'RunLog':
    """Return the RunLog of this process: on ranks above 0 one that does nothing."""
    if get_rank() > 0:
        return RunLog(None)
    return RunLog(folder, dump_config(config), config.VISUALDL)


class RunLog:
    """The record of one run. Without a folder every method does nothing.

    folder: the run folder, or None. settings: yaml text for its config.yaml. visualdl: write
    VisualDL logs too. Raises UserError where that package is missing.
    """

    def __init__(self, folder: str | None, settings: str = '', visualdl: bool = False):
        self.folder = folder
        self.bar = None
        self.scalars = None
        self.failed = set()             # side matters whose failure has been said
        if folder is None:
            return
        if visualdl:
            self.scalars = _open_visualdl(os.path.join(folder, 'visualdl'))
        self.metrics_path = os.path.join(folder, 'metrics.jsonl')
        with go_on('config.yaml'), replace_file(os.path.join(folder, 'config.yaml')) as file:
            file.write(settings.encode('utf-8', KEEP_NAMES))

    def measure_metrics(self) -> int | None:
        """Return the size of metrics.jsonl in bytes, 0 where there is none; None on other ranks."""
        if self.folder is None:
            return None
        return os.path.getsize(self.metrics_path) if os.path.exists(self.metrics_path) else 0

    def cut_metrics(self, size: int | None, update: int) -> None:
        """Drop the lines of metrics.jsonl that a run which continues will write again.

        size: bytes that were on record at its checkpoint; None, in a checkpoint that does not
        say so: the lines of later updates than `update` are dropped.
        """
        if self.folder is None or not os.path.exists(self.metrics_path):
            return
        with go_on('metrics.jsonl', self.failed):
            if size is None:
                self._drop_metrics_after(update)
                return
            with open(open_own(self.metrics_path, os.O_RDWR), 'r+b') as file:
                whole_lines = file.read(size).rfind(b'\n') + 1
                file.truncate(whole_lines)

    def write_metrics(self, event: str, **values: Any) -> None:
        """Append one JSON object to metrics.jsonl; numbers go to VisualDL as well."""
        if self.folder is None:
            return
        values = {key: value if not isinstance(value, float) or math.isfinite(value) else None
                  for key, value in values.items()}     # JSON knows no NaN
        line = json.dumps({'event': event, **values}) + '\n'
        with go_on('metrics.jsonl', self.failed):
            descriptor = open_own(self.metrics_path, os.O_WRONLY | os.O_APPEND)
            with open(descriptor, 'ab', buffering=0) as file:
                append_line(file, line.encode())
        if self.scalars is not None:
            with go_on('VisualDL', self.failed):
                self._add_scalars(event, values)

    def _add_scalars(self, event, values):
        name = f'{event}_ema' if values.get('weights') == 'ema' else event
        for key, value in values.items():
            if key not in ('update', 'epoch') and isinstance(value, (int, float)):
                self.scalars.add_scalar(f'{name}/{key}', value, values.get('update', 0))

    def start_bar(self, total: int, initial: int = 0, unit: str = 'update', text: str = '') -> None:
        """Show a progress bar where the output is a terminal."""
        self.close_bar()
        if self.folder is None or BAR in self.failed:
            return
        with go_on(BAR, self.failed):
            if is_terminal(sys.stderr):
                self.bar = tqdm(total=total, initial=initial, desc=text, leave=False,
                                dynamic_ncols=True, bar_format=_BAR_FORMAT.format(unit=unit))

    def advance_bar(self, **values: Any) -> None:
        """Move the bar on by one, and show the values behind it."""
        if self.bar is None:
            return
        with go_on(BAR, self.failed):
            if values:
                self.bar.set_postfix(values, refresh=False)
            self.bar.update(1)
        if BAR in self.failed:
            self.close_bar()

    def close_bar(self) -> None:
        """Take the bar away."""
        bar, self.bar = self.bar, None
        if bar is not None:
            with go_on(BAR, self.failed):
                bar.close()
            bar.disable = True              # or it is closed again when it is forgotten

    def close(self) -> None:
        """Take the bar away and write out what VisualDL holds back."""
        self.close_bar()
        if self.scalars is not None:
            with go_on('VisualDL', self.failed):
                self.scalars.close()

    def _drop_metrics_after(self, update):
        kept = []
        with open(open_own(self.metrics_path, os.O_RDONLY), encoding='utf-8') as file:
            for line in file:
                try:
                    is_kept = json.loads(line).get('update', 0) <= update
                except ValueError:
                    is_kept = False         # a line that a killed run left unfinished
                if is_kept:
                    kept.append(line if line.endswith('\n') else line + '\n')
        with replace_file(self.metrics_path) as file:
            file.write(''.join(kept).encode())


def _open_visualdl(folder):
    """Return VisualDL's writer. Raises UserError if the package is not there."""
    try:
        from visualdl import LogWriter
    except ImportError as error:
        raise UserError(f'-visualdl needs the package visualdl ({error}): pip install visualdl'
                        ) from None
    return LogWriter(logdir=folder)


def format_duration(seconds: float) -> str:
    """Return "1:02:03" or "2:03" for a number of seconds."""
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02d}:{seconds:02d}' if hours else f'{minutes}:{seconds:02d}'
