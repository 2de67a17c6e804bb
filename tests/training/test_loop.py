"""The training loop by itself, on a layer of two weights."""

import itertools
import signal
import time

import paddle
import pytest

from common.checkpoints.saver import SaveOptions, Saver
from common.errors import Interrupted
from common.run.log import RunLog
from common.training import stopping
from common.training.loop import LoopOptions, TrainSetup, TrainState, train
from common.training.precision import Precision
from common.training.schedule import Plan
from common.training.stopping import StopRequest


class Batches(list):
    """What a loader is to the loop."""

    def describe_workers(self):
        return ''


def make_setup(updates, prepare, **changes):
    plan = Plan(updates, 1, updates, 0, updates)
    options = LoopOptions(seed=0, report_every=1000, validate_every=1000)
    return TrainSetup(
        options=options, plan=plan, schedule=lambda update: 0.1, precision=Precision(),
        compute_loss=lambda network, images, targets: network(images).mean(), prepare=prepare,
        batches=Batches([(paddle.ones([2, 2]), None)] * updates), validate=lambda state: 0.0,
        saver=Saver(None, SaveOptions(), plan, record={}), run_log=RunLog(None), **changes)


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
