"""The meter: sums that do not depend on when they are read, and how long data was waited for."""


import numpy as np
import paddle
import pytest

from common.data.loader import Loader
from common.training import meter
from common.training.meter import Meter
from common.training.stopping import LOOK_SECONDS, count_updates_to_look


def add(figures, count):
    rng = np.random.default_rng(3)
    for update in range(count):
        figures.add(update, paddle.to_tensor(rng.random(), 'float32'), paddle.to_tensor(1.0), 4)
        yield update


@pytest.mark.parametrize('ranks', [1, 3])
def test_sums_are_the_same_however_often_they_are_read(ranks, monkeypatch):
    monkeypatch.setattr(meter, 'gather_over_ranks', lambda values: np.stack(
        [np.asarray(values, 'float64') * (1 + 0.1 * rank) for rank in range(ranks)]))
    means = []
    for every in (1, 3, 7):
        figures = Meter()
        for update in add(figures, 21):
            if (update + 1) % every == 0:
                figures.read(scales=False)
        means.append(figures.take_mean('epoch'))
    assert means[0] == means[1] == means[2]


class Clock:
    """Stands for the time module."""

    def __init__(self):
        self.now = 100.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(meter, 'time', clock)
    return clock


def test_the_share_of_the_time_that_batches_were_waited_for(clock):
    def load():
        for seconds in (50, 1, 3):          # the first waits for the workers' start
            clock.now += seconds
            yield None

    figures = Meter()
    batches = load()
    for update in range(3):
        figures.take_batch(batches)
        clock.now += 2 if update else 36
        figures.add(update, paddle.to_tensor(1.0), paddle.to_tensor(1.0), 4)
        figures.read(scales=False)
    clock.now += 1000                       # a validation
    figures.start_clock()
    assert figures.take_waiting_share() == pytest.approx(4 / 94)
    assert figures.take_waiting_share() == 0


def test_a_long_wait_says_what_to_change():
    loader = Loader([], None, 0, False)
    assert loader.describe_waiting(0.04) == 'The device waited for data 4 % of the time.'
    assert '23 % of the time' in loader.describe_waiting(0.23)
    assert '-num_workers, 0 now' in loader.describe_waiting(0.23)


def test_signals_are_looked_at_every_few_seconds(clock, monkeypatch):
    """The slowest rank decides, so that all of them look at the same update."""
    monkeypatch.setattr(meter, 'gather_over_ranks', lambda values: np.stack(
        [np.asarray(values), np.asarray(values) * 2]))
    figures = Meter()
    for _ in add(figures, 4):
        clock.now += 0.5
    figures.read(scales=False)
    assert figures.update_seconds == 1.0
    assert count_updates_to_look(0.001, 10) == 10
    assert count_updates_to_look(LOOK_SECONDS / 3.5, 10) == 3
    assert count_updates_to_look(60.0, 10) == 1
