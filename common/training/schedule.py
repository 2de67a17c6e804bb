"""How long a run is, and the learning rate of every update."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

from yacs.config import CfgNode

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """The run counted in optimizer updates; epochs are converted here and nowhere else.

    batches_per_epoch: micro-batches of one process. accum_steps: micro-batches an
    update; the last update of an epoch takes what is left. decay_updates: where
    the learning rate's decay ends; the updates after it are the cooldown.
    """

    batches_per_epoch: int
    accum_steps: int
    total_updates: int
    warmup_updates: int
    decay_updates: int

    @property
    def updates_per_epoch(self) -> int:
        return math.ceil(self.batches_per_epoch / self.accum_steps)

    @property
    def total_epochs(self) -> int:
        return math.ceil(self.total_updates / self.updates_per_epoch)

    def count_micro_batches(self, update: int) -> int:
        """Return how many micro-batches update number `update` (from 0) takes."""
        position = update % self.updates_per_epoch
        return min(self.accum_steps, self.batches_per_epoch - position * self.accum_steps)

    def count_batches_before(self, update: int) -> int:
        """Return how many micro-batches a process has consumed before `update`."""
        epoch, position = divmod(update, self.updates_per_epoch)
        return epoch * self.batches_per_epoch + position * self.accum_steps

    def count_epochs(self, updates: int) -> int:
        """Return the number of the epoch, from 1, in which so many updates end."""
        return (updates - 1) // self.updates_per_epoch + 1

    def ends_epoch(self, update: int) -> bool:
        """Whether `update` (from 0) is the last of its epoch or of the run."""
        return (update + 1) % self.updates_per_epoch == 0 or update + 1 == self.total_updates


def build_plan(config: CfgNode, batches_per_epoch: int) -> Plan:
    """Return the Plan for TRAIN.NUM_EPOCHS or NUM_STEPS of the config."""
    train = config.TRAIN
    updates_per_epoch = math.ceil(batches_per_epoch / train.ACCUM_ITER)
    decay = train.NUM_STEPS or train.NUM_EPOCHS * updates_per_epoch
    warmup = train.WARMUP_STEPS
    if warmup is None:
        warmup = train.WARMUP_EPOCHS * updates_per_epoch
    if warmup > decay:
        logger.warning('The warmup of %d updates is longer than the run: it takes all %d updates, '
                       'so that the learning rate rises to the end (TRAIN.WARMUP_EPOCHS, '
                       'WARMUP_STEPS).', warmup, decay)
        warmup = decay
    return Plan(batches_per_epoch, train.ACCUM_ITER,
                total_updates=decay + train.COOLDOWN_EPOCHS * updates_per_epoch,
                warmup_updates=warmup, decay_updates=decay)


def build_schedule(config: CfgNode, plan: Plan, effective_batch: int) -> 'Schedule':
    """Return the Schedule of TRAIN.LR_SCHEDULER for updates of `effective_batch` images.

    Linear scaling with the effective batch (Goyal et al. 2017, Sec. 2.1) where
    TRAIN.LINEAR_SCALED_LR gives the batch that BASE_LR belongs to.
    """
    train, options = config.TRAIN, config.TRAIN.LR_SCHEDULER
    factor = effective_batch / train.LINEAR_SCALED_LR if train.LINEAR_SCALED_LR else 1.0
    return Schedule(
        plan, options.NAME, train.BASE_LR * factor, train.WARMUP_START_LR * factor,
        train.END_LR * factor, from_start=options.FROM_START, power=options.POWER,
        milestones=tuple(options.MILESTONES), decay_rate=options.DECAY_RATE)


@dataclass(frozen=True)
class Schedule:
    """The learning rate as a pure function of the update's number, counted from 0.

    A linear warmup from the rate `start` reaches `peak` at update `warmup_updates`;
    from there the rate decays to `end` at `decay_updates` and stays there. from_start:
    the decay is counted from update 0 and the warmup cuts off its beginning, as timm's
    schedules do. power is polynomial's; milestones (epochs) and decay_rate are step's.
    """

    plan: Plan
    name: str
    peak: float
    start: float = 0.0
    end: float = 0.0
    from_start: bool = False
    power: float = 1.0
    milestones: tuple[float, ...] = ()
    decay_rate: float = 0.1

    def __call__(self, update: int) -> float:
        warmup = self.plan.warmup_updates
        if update < warmup:
            return self.start + (self.peak - self.start) * update / warmup
        return SCHEDULES[self.name](self, update)

    def measure_progress(self, update: int) -> float:
        """Return how much of the decay lies behind an update, from 0 to 1."""
        first = 0 if self.from_start else self.plan.warmup_updates
        length = max(1, self.plan.decay_updates - first)
        return min(1.0, (update - first) / length)

    def interpolate(self, share: float) -> float:
        """Return the rate at a share of the way from `end` (0) to `peak` (1)."""
        return self.end + (self.peak - self.end) * share


def decay_by_cosine(schedule: Schedule, update: int) -> float:
    """Half a cosine (SGDR, arXiv 1608.03983, without restarts)."""
    progress = schedule.measure_progress(update)
    return schedule.interpolate(0.5 * (1 + math.cos(math.pi * progress)))


def decay_linearly(schedule: Schedule, update: int) -> float:
    return schedule.interpolate(1 - schedule.measure_progress(update))


def decay_by_polynomial(schedule: Schedule, update: int) -> float:
    return schedule.interpolate((1 - schedule.measure_progress(update)) ** schedule.power)


def decay_in_steps(schedule: Schedule, update: int) -> float:
    """Multiply by decay_rate at each milestone, an epoch from the run's start."""
    epoch = update / schedule.plan.updates_per_epoch
    passed = sum(epoch >= milestone for milestone in schedule.milestones)
    return schedule.peak * schedule.decay_rate ** passed


def keep_constant(schedule: Schedule, update: int) -> float:
    return schedule.interpolate(1.0)


# TRAIN.LR_SCHEDULER.NAME: (schedule, update after the warmup) -> learning rate.
SCHEDULES: dict[str, Callable[[Schedule, int], float]] = {
    'cosine': decay_by_cosine,
    'linear': decay_linearly,
    'polynomial': decay_by_polynomial,
    'step': decay_in_steps,
    'constant': keep_constant,
}
