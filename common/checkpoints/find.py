"""A run's checkpoints found again: what a folder holds, what of it is good, what -resume means."""

import logging
import os
from dataclasses import dataclass

from common.checkpoints.content import describe
from common.checkpoints.record import check_summary
from common.errors import UserError
from common.weights.registry import RUN_WORDS, find_in_run
from common.weights.trailer import CheckpointError, read_summary, verify_checkpoint

BEST = 'best.pdparams'
LAST = 'last.pdparams'


@dataclass
class CheckpointFile:
    """A checkpoint file in a folder."""

    path: str
    time: float                 # when it was saved; of a damaged file, when it was changed
    summary: dict | None        # None: damaged
    problem: str | None         # why there is no summary

    @property
    def is_link(self) -> bool:
        return os.path.basename(self.path) in (BEST, LAST)


def list_checkpoints(folder: str) -> list[CheckpointFile]:
    """Return the CheckpointFile of every .pdparams file in a folder, newest first."""
    entries = []
    for name in os.listdir(folder):
        if not name.endswith('.pdparams') or name.startswith('.'):
            continue
        path = os.path.join(folder, name)
        try:
            summary = read_summary(path)
            entries.append(CheckpointFile(path, check_summary(summary), summary, None))
        except (OSError, CheckpointError, ValueError) as error:
            changed = os.path.getmtime(path) if os.path.exists(path) else 0.0
            entries.append(CheckpointFile(path, changed, None, describe(error)))
    return sorted(entries, key=lambda entry: (-entry.time, entry.is_link, entry.path))


def find_problem(entry: CheckpointFile) -> str | None:
    """Return why a checkpoint is not good, or None. Reads the whole file."""
    if entry.problem:
        return entry.problem
    try:
        verify_checkpoint(entry.path)
    except (OSError, CheckpointError) as error:
        return describe(error)
    return None


def find_resume(target: str, run_parent: str, model_name: str | None = None,
                logger: logging.Logger | None = None) -> str | None:
    """Return the path of the checkpoint that `-resume=target` means, or None.

    target: a file, with or without .pdparams; a run directory: its newest that verifies; one of
    registry.RUN_WORDS, such as RUN/last; or "auto": the newest that verifies among the run
    directories in `run_parent` that belong to `model_name`, None if there is none. Says which was
    taken, and which newer ones were passed over and why. Raises UserError if a path leads to no
    good checkpoint.
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
    for path in (target, f'{target}.pdparams', find_word(target, run_parent)):
        if path and os.path.isfile(path):
            return path
    raise UserError(f'-resume: there is no file or folder {target}, nor {target}.pdparams.')


def find_run_config(target: str, run_parent: str) -> str | None:
    """Return the config.yaml of the run that `-resume=target` means; None where there is none.

    target, run_parent: see find_resume. "auto" means the run that was saved last.
    """
    folders = [target, os.path.dirname(os.path.abspath(find_word(target, run_parent) or target))]
    if target == 'auto':
        folders = sorted(_list_run_directories(run_parent), key=_find_last_save, reverse=True)
    for folder in folders:
        path = os.path.join(folder, 'config.yaml')
        if os.path.isfile(path) and (target != 'auto' or _find_last_save(folder)):
            return path
    return None


def find_word(target: str, run_parent: str) -> str | None:
    """Return the checkpoint that a target such as RUN/last or "latest" stands for, or None."""
    folder, word = os.path.split(target)
    return find_in_run(folder or run_parent, RUN_WORDS[word]) if word in RUN_WORDS else None


def _find_last_save(folder):
    """Return when a run was saved last, 0 for a folder without a last checkpoint."""
    path = os.path.join(folder, LAST)
    return os.path.getmtime(path) if os.path.isfile(path) else 0.0


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
