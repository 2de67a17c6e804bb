"""Which folder a run writes to, and which checkpoint it goes on from."""

import errno
import os

from yacs.config import CfgNode

from common.checkpoints.find import find_resume
from common.errors import UserError
from common.machine.distributed import broadcast_texts, get_rank
from common.run.lock import RunLock, choose_alone, refuse_running
from common.run.log import make_run_folder


def choose_folder(config: CfgNode, given: str | None = None
                  ) -> tuple[str, str | None, RunLock | None]:
    """Return (run folder, checkpoint to resume from or None, lock), as rank 0 finds them.

    -resume=auto continues in the folder of the run that was interrupted; -resume=PATH
    begins a new one. given: a folder that is made already, or with -resume=auto that of the run to
    go on with. Rank 0 holds the lock of a training run's folder. Raises UserError on every rank.
    """
    found, lock = ['', '', ''], None
    if get_rank() == 0:
        try:
            folder, resume_path, lock = _choose(config) if given is None else _take(config, given)
            found = [folder, resume_path or '', '']
        except UserError as error:
            found[2] = str(error)
    folder, resume_path, problem = broadcast_texts(found)
    if problem:
        raise UserError(problem)
    return folder, resume_path or None, lock


def _choose(config):
    if config.EVAL:
        return make_run_folder(config), None, None
    target, model_name = config.MODEL.RESUME, config.MODEL.NAME
    if target != 'auto':
        resume_path = find_resume(target, config.SAVE, model_name) if target else None
        folder = make_run_folder(config)
        return folder, resume_path, _lock(folder, model_name)
    with choose_alone(config.SAVE):
        refuse_running(config.SAVE, model_name)
        resume_path = find_resume(target, config.SAVE, model_name)
        folder = make_run_folder(config) if resume_path is None else \
            os.path.dirname(os.path.abspath(resume_path))
        return folder, resume_path, _lock(folder, model_name)


def _take(config, folder):
    lock = _lock(folder, config.MODEL.NAME)
    try:
        return folder, find_resume(folder, config.SAVE) if config.MODEL.RESUME else None, lock
    except UserError:
        lock.release()
        raise


def _lock(folder, model_name):
    try:
        return RunLock(folder, model_name)
    except OSError as error:
        where = f', {os.path.basename(error.filename)}' if error.errno in (
            errno.ELOOP, errno.EINVAL) and error.filename else ''
        raise UserError(f'Cannot write to the run folder {folder}{where}: {error.strerror}.'
                        ) from None
