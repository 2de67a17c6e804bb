"""The training loop by itself, on a layer of two weights."""

import itertools
import logging
import signal
import time
from types import SimpleNamespace

import paddle
import pytest

from common.checkpoints.saver import SaveOptions, Saver
from common.errors import Interrupted, RunError
from common.run.log import RunLog
from common.training import loop, stopping
from common.training.loop import LoopOptions, TrainSetup, TrainState, train
from common.training.meter import MAX_SKIPPED
from common.training.precision import Precision
from common.training.schedule import Plan
from common.training.stopping import StopRequest, Watchdog


class Batches(list):
    """What a loader is to the loop."""

    def describe_workers(self):
        return ''


def make_setup(updates, prepare, **changes):
    plan = Plan(updates, 1, updates, 0, updates)
    options = LoopOptions(seed=0, report_every=1000, validate_every=1000)
    return TrainSetup(**{
        'options': options, 'plan': plan, 'schedule': lambda update: 0.1,
        'precision': Precision(), 'prepare': prepare,
        'compute_loss': lambda network, images, targets: network(images).mean(),
        'batches': Batches([(paddle.ones([2, 2]), None)] * updates),
        'validate': lambda state: 0.0, 'saver': Saver(None, SaveOptions(), plan, record={}),
        'run_log': RunLog(None), **changes})


def make_state():
    model = paddle.nn.Linear(2, 1)
    optimizer = paddle.optimizer.SGD(parameters=[
        {'params': model.parameters(), 'learning_rate': 1.0}])
    return TrainState(model, optimizer, Precision().scaler)


def test_a_signal_does_not_wait_for_slow_updates(monkeypatch):
    """Launchers wait 30 s for the save, which ten updates of a large model may exceed."""
    monkeypatch.setattr(stopping, 'LOOK_SECONDS', 0.05)
    stop = StopRequest()

    number = itertools.count()

    def prepare(batch):
        time.sleep(0.06)
        if next(number) == 2:
            stop.number = signal.SIGTERM
        return batch

    state = make_state()
    with pytest.raises(Interrupted):
        train(make_setup(20, prepare, stop=stop, check_every=10), state)
    assert state.update == 3


@pytest.mark.parametrize('report_every, told', [(5, range(1, 9)), (6, [3, 6, 8])])
def test_short_epochs_are_told_where_they_are_validated(report_every, told, monkeypatch, caplog):
    """Forty updates of five an epoch: a few pictures would make hundreds of lines."""
    monkeypatch.setattr(loop.logger, 'propagate', True)
    options = LoopOptions(seed=0, report_every=report_every, validate_every=3, save_every=100)
    setup = make_setup(40, lambda batch: batch, check_every=1, options=options,
                       plan=Plan(5, 1, 40, 0, 40))
    with caplog.at_level(logging.INFO):
        train(setup, make_state())
    assert [line.split('/')[0] for line in caplog.messages if ': train loss ' in line] == [
        f'Epoch {epoch}' for epoch in told]


def test_gradients_that_stay_infinite_end_the_run():
    """As in float16 with finite losses, where loss scaling skips every update for ever."""
    precision = Precision()
    precision.enabled = True                # so that overflows are expected
    precision.scaler = SimpleNamespace(     # skips each of them
        scale=lambda loss: loss, unscale_=lambda optimizer: None, step=lambda optimizer: None,
        update=lambda: None)
    state = make_state()
    with pytest.raises(RunError, match=f'not finite .* at update {MAX_SKIPPED}, learning rate'):
        train(make_setup(
            MAX_SKIPPED + 20, lambda batch: batch, check_every=1, precision=precision,
            compute_loss=lambda network, images, targets: (0 * network(images)).sum().sqrt()),
            state)
    assert state.meter.last_loss == 0 and state.meter.overflows == MAX_SKIPPED


def test_the_first_broadcast_is_watched(monkeypatch):
    """There GPUs whose network does not suit NCCL hang."""
    watchdog = Watchdog(60)
    watched = []

    def wrap(model):
        watched.append(watchdog.closed is not None)
        return model

    monkeypatch.setattr(loop, 'wrap_data_parallel', wrap)
    train(make_setup(1, lambda batch: batch, check_every=1, watchdog=watchdog), make_state())
    assert watched == [True]
