"""A run's checkpoints: saved in the background, the best and the last always there, found again.

A folder holds `Epoch-{epoch}-Loss-{loss}.pdparams` files and two stable names,
`last.pdparams` and `best.pdparams`, which are further names (hard links) of two of them.
"""

import dataclasses
import logging
import os
import threading
import time

from common.checkpoints.content import capture, describe, read_content
from common.checkpoints.file import (
    link_checkpoint,
    remove_temporary_files,
    write_checkpoint,
)
from common.errors import UserError
from common.weights.trailer import CheckpointError, read_summary, verify_checkpoint

BEST = 'best.pdparams'
LAST = 'last.pdparams'
WRITER_NICENESS = 19            # training goes first where both want the same core


class CheckpointStore:
    """Saves into one folder, one save at a time, from a background thread.

    keep: files kept beside the best and the last. A save that fails (full disk, quota,
    folder gone) leaves every earlier file as it was, is logged as an error, and lets
    training go on: the next save may succeed. `wait`, called at the end of a run, raises
    if the last save failed.
    """

    def __init__(self, folder, keep=2, logger=None):
        self.folder = folder
        self.keep = keep
        self.logger = logger or logging.getLogger(__name__)
        self.last_good = None           # path of the newest checkpoint known to be good
        self.error = None               # text, if the last save failed
        self._writer = None
        self._buffers = {}              # the copy's memory, used again by every save
        removed = remove_temporary_files(folder)
        if removed:
            self.logger.info('Removed %d unfinished checkpoint(s) from %s.', len(removed), folder)
        self._newest_time = max((entry.time for entry in list_checkpoints(folder)), default=0.0)
        try:
            self._repair_links()
            self._prune()
        except OSError as error:
            self.logger.warning('%s could not be put in order: %s.', folder, describe(error))

    def save(self, state, progress, is_best=False):
        """Copy the state and start writing it; returns the path once the copy is made.

        state and progress: see `checkpoint.capture`; progress needs 'epoch', 'update' and
        'loss'. Waits for an unfinished earlier save first, so that there is never more than
        one copy in memory.
        """
        self.join()
        payload = capture(state, progress, self._buffers)
        # A clock that is set back must not make a new file look older.
        self._newest_time = max(time.time(), self._newest_time + 0.001)
        summary = {key: payload[key] for key in
                   ('model_name', 'epoch', 'update', 'loss', 'world_size', 'format_version')}
        summary.update(time=self._newest_time, is_best=is_best)
        path = os.path.join(
            self.folder, f'Epoch-{payload["epoch"]}-Loss-{payload["loss"]:.6g}.pdparams')
        writer = threading.Thread(
            target=self._write_beside_training, args=(path, payload, summary),
            name='checkpoint-writer')
        try:
            writer.start()
            self._writer = writer
        except RuntimeError:            # a limit of the system: training waits meanwhile
            self._write(path, payload, summary)
        return path

    def wait(self):
        """Wait for the save under way. Raises CheckpointError if the last save failed."""
        self.join()
        if self.error:
            raise CheckpointError(self.error)

    @property
    def is_writing(self):
        return self._writer is not None and self._writer.is_alive()

    def adopt_best(self, folder):
        """Take over the best checkpoint of the run that is continued in this new folder."""
        source = os.path.join(folder, BEST)
        target = os.path.join(self.folder, BEST)
        if os.path.exists(source) and not os.path.exists(target):
            try:
                verify_checkpoint(source)
                link_checkpoint(source, target)
            except (OSError, CheckpointError) as error:
                self.logger.warning('%s was not taken over: %s.', source, describe(error))

    def join(self):
        """Wait for the save under way, whether it succeeds or not."""
        if self._writer is not None:
            started = time.monotonic()
            self._writer.join()
            self._writer = None
            if time.monotonic() - started > 5:
                self.logger.warning('Waited %.0f s for the previous checkpoint to be written.',
                                    time.monotonic() - started)

    def _write_beside_training(self, path, payload, summary):
        _yield_to_training()
        self._write(path, payload, summary)

    def _write(self, path, payload, summary):
        try:
            write_checkpoint(path, payload, summary,
                             lambda content: read_content(content, path))
        except Exception as error:
            good = f'The last good one is {self.last_good}.' if self.last_good else \
                'There is no earlier one.'
            self.error = f'Could not save {path}: {describe(error)}. {good}'
            self.logger.error('%s', self.error)
            return
        self.error = None
        self.last_good = path
        try:
            self._link(path, LAST)
            if summary['is_best']:
                self._link(path, BEST)
            self._prune()
        except OSError as error:
            self.logger.warning('Saved %s, but the folder could not be put in order: %s.',
                                path, describe(error))

    def _link(self, path, name):
        link_checkpoint(path, os.path.join(self.folder, name))

    def _prune(self):
        """Delete all but the newest good one, the best, and the `keep` newest of the others.

        What is newer than the newest good one is damaged, and neither counted nor deleted.
        """
        entries = [entry for entry in list_checkpoints(self.folder)
                   if entry.summary and not entry.is_link]
        while entries and not _is_same(entries[0].path, self.last_good):
            entries.pop(0)
        best = next((entry for entry in entries if entry.summary['is_best']), None)
        others = [entry for entry in entries[1:] if entry is not best]
        for entry in others[self.keep:]:
            os.remove(entry.path)

    def _repair_links(self):
        """Finish what a kill between the renaming and the linking left undone."""
        entries = list_checkpoints(self.folder)
        times = {os.path.basename(entry.path): entry.time for entry in entries if entry.summary}
        for name in (LAST, BEST):
            for entry in entries:
                if entry.is_link or not entry.summary or entry.time <= times.get(name, 0.0):
                    continue
                if name == BEST and not entry.summary['is_best']:
                    continue
                if find_problem(entry) is None:
                    self._link(entry.path, name)
                    break
        good = next((entry for entry in entries if find_problem(entry) is None), None)
        self.last_good = good.path if good else None


@dataclasses.dataclass
class Entry:
    """A checkpoint file in a folder."""

    path: str
    time: float                 # when it was saved; of a damaged file, when it was changed
    summary: dict | None        # None: damaged
    problem: str | None         # why there is no summary

    @property
    def is_link(self):
        return os.path.basename(self.path) in (BEST, LAST)


def list_checkpoints(folder):
    """Return the Entry of every .pdparams file in a folder, newest first."""
    entries = []
    for name in os.listdir(folder):
        if not name.endswith('.pdparams') or name.startswith('.'):
            continue
        path = os.path.join(folder, name)
        try:
            summary = read_summary(path)
            entries.append(Entry(path, float(summary['time']), summary, None))
        except (OSError, CheckpointError, KeyError, TypeError, ValueError) as error:
            changed = os.path.getmtime(path) if os.path.exists(path) else 0.0
            entries.append(Entry(path, changed, None, describe(error)))
    return sorted(entries, key=lambda entry: (-entry.time, entry.is_link, entry.path))


def find_problem(entry):
    """Return why a checkpoint is not good, or None. Reads the whole file."""
    if entry.problem:
        return entry.problem
    try:
        verify_checkpoint(entry.path)
    except (OSError, CheckpointError) as error:
        return describe(error)
    return None


def find_resume(target, run_parent, model_name=None, logger=None):
    """Return the path of the checkpoint that `-resume=target` means, or None.

    target: a file, with or without .pdparams; a run directory: its newest that verifies;
    or "auto": the newest that verifies among the run directories in `run_parent` that
    belong to `model_name`, None if there is none. Says which was taken, and which newer
    ones were passed over and why. Raises UserError if a path leads to no good checkpoint.
    """
    logger = logger or logging.getLogger(__name__)
    if target == 'auto':
        path = _newest_good(_list_run_directories(run_parent), model_name, logger)
        if path is None:
            logger.info('-resume=auto: no checkpoint%s in %s; starting from the beginning.',
                        f' of {model_name}' if model_name else '', run_parent)
        return path
    if os.path.isdir(target):
        path = _newest_good([target], None, logger)
        if path is None:
            raise UserError(f'-resume: the folder {target} has no good checkpoint.')
        return path
    for path in (target, f'{target}.pdparams'):
        if os.path.isfile(path):
            return path
    raise UserError(f'-resume: there is no file or folder {target}, nor {target}.pdparams.')


def _list_run_directories(run_parent):
    if not os.path.isdir(run_parent):
        return []
    with os.scandir(run_parent) as entries:
        return sorted(entry.path for entry in entries if entry.is_dir())


def _newest_good(folders, model_name, logger):
    entries = [entry for folder in folders for entry in list_checkpoints(folder)]
    for entry in sorted(entries, key=lambda entry: -entry.time):
        if entry.summary and model_name and entry.summary.get('model_name') != model_name:
            continue
        problem = find_problem(entry)
        if problem is None:
            logger.info('Resuming from %s (epoch %s, update %s): the newest that is good.',
                        entry.path, entry.summary.get('epoch'), entry.summary.get('update'))
            return entry.path
        logger.warning('Passed over %s: %s.', entry.path, problem)
    return None


def _is_same(path, other):
    return os.path.basename(path) == os.path.basename(other or '')


def _yield_to_training():
    if hasattr(os, 'setpriority') and hasattr(threading, 'get_native_id'):
        try:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), WRITER_NICENESS)
        except OSError:
            return                      # a sandbox forbids it: the writer then competes
