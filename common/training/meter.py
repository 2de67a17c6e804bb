"""Training figures: sums and counts in float64, read from the device as rarely as asked."""

import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import paddle

from common.machine.distributed import gather_over_ranks

# Updates in a row that loss scaling may skip. It halves its scale every other time, so that
# after these even 2 ** 15 has become 1: the gradients themselves are not finite.
MAX_SKIPPED = 30


class Meter:
    """Losses of a run, of the current report and of the current epoch, over all ranks.

    `add` keeps device tensors; `read` fetches them together, which waits for the device,
    and agrees with the other ranks in one collective operation.
    """

    def __init__(self):
        self.pending = []                       # (update, loss, gradient norm) on the device
        self.sums = {'report': [0.0, 0], 'epoch': [0.0, 0]}     # [sum of losses, updates]
        self.overflows = 0                      # updates that loss scaling skipped
        self.skipped = 0                        # the same, since the last that was not
        self.grad_norm = math.nan               # of the last update read
        self.last_loss = math.nan               # mean of the updates in the last read
        self.update_seconds = math.inf          # of the updates in the last read, slowest rank
        self.waited = self.trained = 0.0        # seconds of the epoch so far
        self.has_started = False                # the first batch waits for the workers' start
        self.start_clock()

    def start_clock(self) -> None:
        """Begin to measure throughput from here."""
        self.clock = self.read_clock = time.perf_counter()
        self.images = self.updates = 0

    @property
    def seconds(self) -> float:
        """Time since the clock was started."""
        return max(time.perf_counter() - self.clock, 1e-9)

    @property
    def images_per_second(self) -> float:
        """Throughput of all ranks since the clock was started."""
        return self.images / self.seconds

    def take_batch(self, batches: Iterator) -> Any:
        """Return the next batch; how long it took is how long the device waits for data."""
        started = time.perf_counter()
        batch = next(batches)
        if self.has_started:
            self.waited += time.perf_counter() - started
        self.has_started = True
        return batch

    def take_waiting_share(self) -> float:
        """Return the share of the epoch that batches were waited for, and begin the next one."""
        share = self.waited / self.trained if self.trained else 0.0
        self.waited = self.trained = 0.0
        return min(1.0, share)

    def add(self, update: int, loss: paddle.Tensor, grad_norm: paddle.Tensor, images: int) -> None:
        """Take in one update: loss (mean over its images) and gradient norm are scalars."""
        self.pending.append((update, loss, grad_norm))
        self.images += images
        self.updates += 1

    def read(self, scales: bool, stop_signal: int = 0,
             save_due: bool = False) -> tuple[int | None, int, bool]:
        """Fetch what is pending, and agree with the other ranks.

        scales: gradients may overflow under loss scaling, which skips the update.
        Returns (first update that is not finite or None, signal, save due); each is
        that of any rank.
        """
        bad = math.inf
        losses = np.zeros(0)
        if self.pending:
            losses = _fetch([loss for _, loss, _ in self.pending])
            norms = _fetch([norm for *_, norm in self.pending])
            is_bad = ~np.isfinite(losses)
            is_bad |= self._count_skipped(norms) if scales else ~np.isfinite(norms)
            if is_bad.any():
                bad = self.pending[int(is_bad.argmax())][0]
            self.grad_norm = float(norms[-1])
        seconds = time.perf_counter() - self.read_clock
        self.read_clock += seconds
        self.trained += seconds
        seconds /= max(1, len(self.pending))
        ranks = gather_over_ranks([bad, stop_signal, save_due, seconds, *losses])
        means = ranks[:, 4:].mean(axis=0)
        for loss in means:              # one by one: how often is read makes no difference
            for sums in self.sums.values():
                sums[0] += float(loss)
                sums[1] += 1
        self.last_loss = float(means.mean()) if len(means) else 0.0
        self.update_seconds = float(ranks[:, 3].max())
        self.pending = []
        bad = ranks[:, 0].min()
        bad = None if math.isinf(bad) else int(bad)
        return bad, int(ranks[:, 1].max()), bool(ranks[:, 2].any())

    def _count_skipped(self, norms):
        """Count the updates that were skipped; return which of them were too many in a row."""
        too_many = np.zeros(len(norms), bool)
        for number, norm in enumerate(norms):
            if np.isfinite(norm):
                self.skipped = 0
            else:
                self.overflows += 1
                self.skipped += 1
                too_many[number] = self.skipped >= MAX_SKIPPED
        return too_many

    def mean(self, name: str) -> float:
        """Return the mean loss of the "report" or "epoch" so far; NaN before its first update."""
        total, count = self.sums[name]
        return total / count if count else math.nan

    def take_mean(self, name: str) -> float:
        """Return the mean loss of the "report" or "epoch" and begin the next one."""
        mean = self.mean(name)
        self.sums[name] = [0.0, 0]
        return mean

    def state_dict(self) -> dict[str, Any]:
        return {'report': list(self.sums['report']), 'epoch': list(self.sums['epoch']),
                'overflows': self.overflows}

    def set_state_dict(self, state: dict[str, Any]) -> None:
        self.sums = {name: list(state[name]) for name in ('report', 'epoch')}
        self.overflows = state['overflows']


def _fetch(scalars):
    """Return device scalars as float64 [n]. NumPy would show bfloat16 as raw integers."""
    return paddle.stack([scalar.astype('float32') for scalar in scalars]).numpy().astype('float64')
