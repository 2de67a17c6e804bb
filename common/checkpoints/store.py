"""A run's checkpoints: saved in the background, the best and the last always there.

A folder holds `Epoch-{epoch}-Loss-{loss}.pdparams` files and two stable names,
`last.pdparams` and `best.pdparams`, which are further names (hard links) of two of them.
"""

import logging
import os
import threading
import time
from typing import Any

from common.checkpoints.content import capture, describe, read_content
from common.checkpoints.file import (
    link_checkpoint,
    remove_temporary_files,
    write_checkpoint,
)
from common.checkpoints.find import BEST, LAST, find_problem, list_checkpoints
from common.weights.trailer import CheckpointError, verify_checkpoint

WRITER_NICENESS = 19            # training goes first where both want the same core


class CheckpointStore:
    """Saves into one folder, one save at a time, from a background thread.

    keep: files kept beside the best and the last. A save that fails (full disk, quota,
    folder gone) leaves every earlier file as it was, is logged as an error, and lets
    training go on: the next save may succeed. `wait`, called at the end of a run, raises
    if the last save failed.
    """

    def __init__(self, folder: str, keep: int = 2, logger: logging.Logger | None = None):
        self.folder = folder
        self.keep = keep
        self.logger = logger or logging.getLogger(__name__)
        self.last_good = None           # path of the newest checkpoint known to be good
        self.error = None               # text, if the last save failed
        self._writer: threading.Thread | None = None
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

    def save(self, state: Any, progress: dict, is_best: bool = False) -> str:
        """Copy the state and start writing it; returns the path once the copy is made.

        state and progress: see `content.capture`; progress needs 'epoch', 'update' and
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

    def wait(self) -> None:
        """Wait for the save under way. Raises CheckpointError if the last save failed."""
        self.join()
        if self.error:
            raise CheckpointError(self.error)

    @property
    def is_writing(self) -> bool:
        return self._writer is not None and self._writer.is_alive()

    def adopt_best(self, folder: str) -> None:
        """Take over the best checkpoint of the run that is continued in this new folder."""
        source = os.path.join(folder, BEST)
        target = os.path.join(self.folder, BEST)
        if os.path.exists(source) and not os.path.exists(target):
            try:
                verify_checkpoint(source)
                link_checkpoint(source, target)
            except (OSError, CheckpointError) as error:
                self.logger.warning('%s was not taken over: %s.', source, describe(error))

    def join(self) -> None:
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
        best = next((entry for entry in entries if entry.summary.get('is_best')), None)
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
                if name == BEST and not entry.summary.get('is_best'):
                    continue
                if find_problem(entry) is None:
                    self._link(entry.path, name)
                    break
        good = next((entry for entry in entries if find_problem(entry) is None), None)
        self.last_good = good.path if good else None


def _is_same(path, other):
    return os.path.basename(path) == os.path.basename(other or '')


def _yield_to_training():
    if hasattr(os, 'setpriority') and hasattr(threading, 'get_native_id'):
        try:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), WRITER_NICENESS)
        except OSError:
            return                      # a sandbox forbids it: the writer then competes
