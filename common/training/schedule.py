"""How long a run is, and the learning rate of every update."""

import math
from dataclasses import dataclass

from common.errors import UserError


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
    def updates_per_epoch(self):
        return math.ceil(self.batches_per_epoch / self.accum_steps)

    @property
    def total_epochs(self):
        return math.ceil(self.total_updates / self.updates_per_epoch)

    def count_micro_batches(self, update):
        """Return how many micro-batches update number `update` (from 0) takes."""
        position = update % self.updates_per_epoch
        return min(self.accum_steps, self.batches_per_epoch - position * self.accum_steps)

    def count_batches_before(self, update):
        """Return how many micro-batches a process has consumed before `update`."""
        epoch, position = divmod(update, self.updates_per_epoch)
        return epoch * self.batches_per_epoch + position * self.accum_steps

    def ends_epoch(self, update):
        """Whether `update` (from 0) is the last of its epoch or of the run."""
        return (update + 1) % self.updates_per_epoch == 0 or update + 1 == self.total_updates


def build_plan(config, batches_per_epoch):
    """Return the Plan for TRAIN.NUM_EPOCHS or NUM_STEPS of the config."""
    train = config.TRAIN
    updates_per_epoch = math.ceil(batches_per_epoch / train.ACCUM_ITER)
    decay = train.NUM_STEPS or train.NUM_EPOCHS * updates_per_epoch
    warmup = train.WARMUP_STEPS
    if warmup is None:
        warmup = train.WARMUP_EPOCHS * updates_per_epoch
    if warmup > decay:
        raise UserError(f'The warmup of {warmup} updates is longer than the run of {decay}. '
                        'Lower TRAIN.WARMUP_EPOCHS or TRAIN.WARMUP_STEPS.')
    return Plan(batches_per_epoch, train.ACCUM_ITER,
                total_updates=decay + train.COOLDOWN_EPOCHS * updates_per_epoch,
                warmup_updates=warmup, decay_updates=decay)


def scale_learning_rate(config, effective_batch):
    """Return (peak, warmup start, end) learning rates for this batch size.

    Linear scaling with the effective batch (Goyal et al. 2017, Sec. 2.1) where
    TRAIN.LINEAR_SCALED_LR gives the batch that BASE_LR belongs to.
    """
    train = config.TRAIN
    factor = effective_batch / train.LINEAR_SCALED_LR if train.LINEAR_SCALED_LR else 1.0
    return train.BASE_LR * factor, train.WARMUP_START_LR * factor, train.END_LR * factor


class Schedule:
    """The learning rate as a pure function of the update's number, counted from 0.

    A linear warmup from the start rate reaches the peak at update `warmup_updates`;
    from there the rate decays to the end rate at `decay_updates` and stays there.
    With LR_SCHEDULER.FROM_START the decay is counted from update 0 and the warmup
    cuts off its beginning, as timm's schedules do.
    """

    def __init__(self, config, plan, effective_batch):
        self.peak, self.start, self.end = scale_learning_rate(config, effective_batch)
        self.plan = plan
        self.options = config.TRAIN.LR_SCHEDULER
        self.decay = _DECAYS[self.options.NAME]

    def __call__(self, update):
        warmup = self.plan.warmup_updates
        if update < warmup:
            return self.start + (self.peak - self.start) * update / warmup
        first = 0 if self.options.FROM_START else warmup
        length = max(1, self.plan.decay_updates - first)
        progress = min(1.0, (update - first) / length)
        if self.options.NAME == 'step':
            return self._step(update)
        return self.end + (self.peak - self.end) * self.decay(progress, self.options.POWER)

    def _step(self, update):
        epoch = update / self.plan.updates_per_epoch
        passed = sum(epoch >= milestone for milestone in self.options.MILESTONES)
        return self.peak * self.options.DECAY_RATE ** passed


_DECAYS = {
    'cosine': lambda progress, power: 0.5 * (1 + math.cos(math.pi * progress)),
    'linear': lambda progress, power: 1 - progress,
    'polynomial': lambda progress, power: (1 - progress) ** power,
    'constant': lambda progress, power: 1.0,
    'step': None,
}
