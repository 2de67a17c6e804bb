"""What a run's checkpoints say of it, and whether steps or minutes call for one."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from yacs.config import CfgNode

from common.checkpoints.store import CheckpointStore
from common.training.schedule import Plan
from common.weights import describe_numerics

if TYPE_CHECKING:               # the loop saves by this module
    from common.training.loop import TrainState

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SaveOptions:
    """How many checkpoints are kept, and when they are due apart from ends of epochs."""

    keep: int = 2                   # beside the newest and the best
    steps: int | None = None        # updates between two of them
    minutes: float | None = None
    says_best: bool = True          # whether the log says which is the best so far


def read_save_options(config: CfgNode) -> SaveOptions:
    """Return the SaveOptions of a config tree."""
    return SaveOptions(config.KEEP, config.SAVE_STEPS, config.SAVE_MINUTES,
                       says_best=config.BEST != 'latest')


@dataclass
class Saver:
    """Writes checkpoints where there is a store, on rank 0; the others only agree.

    record: what every checkpoint says of its run (keys of content.PROGRESS).
    measure_metrics: returns the size of the metrics file, to which a resumed run cuts it.
    """

    store: CheckpointStore | None
    options: SaveOptions
    plan: Plan
    record: dict
    measure_metrics: Callable[[], int | None] = lambda: None
    saved_at: float = field(default_factory=time.monotonic)

    def steps_due(self, update: int) -> bool:
        """Whether SAVE_STEPS asks for a checkpoint after so many updates."""
        return self.options.steps is not None and update % self.options.steps == 0

    def minutes_due(self) -> bool:
        """Whether SAVE_MINUTES have passed since the last save."""
        minutes = self.options.minutes
        return minutes is not None and time.monotonic() - self.saved_at >= 60 * minutes

    def save(self, state: 'TrainState', loss: float, is_best: bool = False,
             metrics_size: int | None = None, is_again: bool = False) -> None:
        """Start writing a checkpoint; training goes on meanwhile.

        is_again: it was saved before it was validated, which the log need not say twice.
        metrics_size: bytes of the metrics file that belong to this state; None: all of them.
        """
        self.saved_at = time.monotonic()
        if self.store is None:
            return
        epoch, position = divmod(state.update, self.plan.updates_per_epoch)
        path = self.store.save(state, {
            **self.record, 'epoch': epoch, 'update': state.update,
            'updates_per_epoch': self.plan.updates_per_epoch,
            'micro_batch': position * self.plan.accum_steps, 'loss': loss,
            'learning_rate': state.optimizer.get_lr(), 'best': state.best,
            'awaits_validation': state.awaits_validation, 'has_ended': state.has_ended,
            'metrics_size': self.measure_metrics() if metrics_size is None else metrics_size,
            'meter': state.meter.state_dict(),
            'numerics': describe_numerics(state.model),
        }, is_best)
        says_best = is_best and self.options.says_best
        if not is_again:
            logger.info('Saving %s%s', path, ' (best so far)' if says_best else '')
        elif says_best:
            logger.info('The best so far: %s', path)

    def last_good(self) -> str:
        """Return the path of the newest checkpoint known to be good, or "none yet"."""
        if self.store is None:
            return 'in the run folder'
        self.store.join()
        return self.store.last_good or 'none yet'

    def join(self) -> None:
        """Wait for the last save, whether it succeeds or not; the log says if it failed."""
        if self.store is not None:
            self.store.join()

    def finish(self) -> None:
        """Wait for the last save. Raises RunError if it failed."""
        if self.store is not None:
            self.store.wait()
