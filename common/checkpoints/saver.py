"""When and where a run's checkpoints are written, and what they say of the run."""

import logging
import os
import time

from common.checkpoints.store import CheckpointStore
from common.config import dump_config
from common.data.preprocessing import read_preprocessing
from common.machine.distributed import get_rank, get_world_size
from common.weights import describe_numerics

logger = logging.getLogger(__name__)


class Saver:
    """When and where checkpoints are written; rank 0 writes, the others only agree."""

    def __init__(self, job, plan):
        self.job = job
        self.plan = plan
        self.store = None
        self.saved_at = time.monotonic()
        if get_rank() == 0:
            self.store = CheckpointStore(job.folder, job.config.KEEP)
            if job.resume_path is not None and not job.continues:
                self.store.adopt_best(os.path.dirname(os.path.abspath(job.resume_path)))

    def steps_due(self, update):
        """Whether SAVE_STEPS asks for a checkpoint after so many updates."""
        every = self.job.config.SAVE_STEPS
        return every is not None and update % every == 0

    def minutes_due(self):
        """Whether SAVE_MINUTES have passed since the last save."""
        minutes = self.job.config.SAVE_MINUTES
        return minutes is not None and time.monotonic() - self.saved_at >= 60 * minutes

    def save(self, state, loss, is_best=False):
        """Start writing a checkpoint; training goes on meanwhile."""
        self.saved_at = time.monotonic()
        if self.store is None:
            return
        config, plan = self.job.config, self.plan
        epoch, position = divmod(state.update, plan.updates_per_epoch)
        path = self.store.save(state, {
            'epoch': epoch, 'update': state.update, 'updates_per_epoch': plan.updates_per_epoch,
            'micro_batch': position * plan.accum_steps, 'loss': loss,
            'learning_rate': state.optimizer.get_lr(), 'best': state.best,
            'meter': state.meter.state_dict(), 'model_name': config.MODEL.NAME,
            'seed': config.SEED, 'world_size': get_world_size(), 'config': dump_config(config),
            'class_names': self.job.dataset_train.class_names,
            'numerics': describe_numerics(state.model),
            'preprocessing': read_preprocessing(config).as_record(),
        }, is_best)
        logger.info('Saving %s%s', path, ' (best so far)' if is_best else '')

    def last_good(self):
        """Return the path of the newest checkpoint known to be good, or "none yet"."""
        if self.store is None:
            return 'in the run folder'
        self.store.join()
        return self.store.last_good or 'none yet'

    def finish(self):
        """Wait for the last save. Raises RunError if it failed."""
        if self.store is not None:
            self.store.wait()
