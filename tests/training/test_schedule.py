"""The learning rate of every update, and the plan of a run, against formulas written anew."""

import math

import numpy as np
import pytest

from common.training.schedule import build_plan, build_schedule
from ViT.config import get_config

BASE, START, END = 2e-3, 1e-5, 3e-5
FLAGS = {'TRAIN.BASE_LR': BASE, 'TRAIN.WARMUP_START_LR': START, 'TRAIN.END_LR': END,
         'TRAIN.NUM_EPOCHS': 10, 'TRAIN.WARMUP_EPOCHS': 2}
PER_EPOCH = 7           # updates: 14 micro-batches, two an update
WARMUP, TOTAL = 14, 70


def build(batch=64, **changes):
    flags = FLAGS | {'TRAIN.ACCUM_ITER': 2}
    flags |= {f'TRAIN.{key.replace("__", ".")}': value for key, value in changes.items()}
    config = get_config(flags=flags)
    plan = build_plan(config, batches_per_epoch=14)
    return build_schedule(config, plan, batch), plan


def check(schedule, expected):
    for update, rate in expected.items():
        assert schedule(update) == pytest.approx(rate, abs=1e-9, rel=0), update


def cosine(share):
    return END + (BASE - END) * (1 + math.cos(math.pi * share)) / 2


WARMING = {0: START, 1: START + (BASE - START) / 14, 7: (START + BASE) / 2,
           13: BASE - (BASE - START) / 14, 14: BASE}
CURVES = {
    'cosine': {15: cosine(1 / 56), 28: cosine(0.25), 42: (BASE + END) / 2, 69: cosine(55 / 56)},
    'linear': {42: (BASE + END) / 2, 28: BASE - (BASE - END) / 4, 69: END + (BASE - END) / 56},
    'polynomial': {42: END + (BASE - END) / 8, 69: END + (BASE - END) / 56 ** 3},
    'constant': {42: BASE, 69: BASE},
    'step': {20: BASE, 21: BASE * 0.2, 34: BASE * 0.2, 35: BASE * 0.04, 69: BASE * 0.04},
}


@pytest.mark.parametrize('name', CURVES)
def test_rates_at_fixed_updates(name):
    schedule, plan = build(LR_SCHEDULER__NAME=name, LR_SCHEDULER__POWER=3.0,
                           LR_SCHEDULER__MILESTONES=[3, 5], LR_SCHEDULER__DECAY_RATE=0.2)
    assert (plan.warmup_updates, plan.total_updates) == (WARMUP, TOTAL)
    check(schedule, WARMING | CURVES[name])
    rates = [schedule(update) for update in range(TOTAL)]
    assert np.all(np.diff(rates[:15]) > 0) and np.all(np.diff(rates[14:]) <= 0)


def test_decay_counted_from_the_start_is_cut_by_the_warmup():
    schedule, _ = build(LR_SCHEDULER__FROM_START=True)
    check(schedule, {0: START, 7: (START + BASE) / 2, 13: BASE - (BASE - START) / 14,
                     14: cosine(0.2), 35: (BASE + END) / 2, 69: cosine(69 / 70)})


def test_cooldown_stays_at_the_end_rate():
    schedule, plan = build(COOLDOWN_EPOCHS=2)
    assert plan.total_updates == 84 and plan.total_epochs == 12
    check(schedule, {42: (BASE + END) / 2, 69: cosine(55 / 56), 70: END, 83: END})


def test_no_warmup():
    schedule, _ = build(WARMUP_EPOCHS=0)
    check(schedule, {0: BASE, 35: (BASE + END) / 2})


def test_scaling_with_the_batch():
    schedule, _ = build(batch=256, LINEAR_SCALED_LR=512)
    check(schedule, {0: START / 2, 14: BASE / 2, 42: (BASE + END) / 4})
    schedule, _ = build(batch=96, LINEAR_SCALED_LR=64)
    assert (schedule.peak, schedule.start, schedule.end) == pytest.approx(
        (BASE * 1.5, START * 1.5, END * 1.5))
    schedule, _ = build(batch=256)
    check(schedule, {14: BASE})


def test_steps_count_before_epochs():
    schedule, plan = build(NUM_STEPS=33, WARMUP_STEPS=3)
    assert (plan.warmup_updates, plan.total_updates, plan.total_epochs) == (3, 33, 5)
    check(schedule, {0: START, 3: BASE, 18: (BASE + END) / 2})
    assert [update for update in range(33) if plan.ends_epoch(update)] == [6, 13, 20, 27, 32]


def test_accumulation_has_a_shorter_last_group():
    config = get_config(flags={'TRAIN.ACCUM_ITER': 4, 'TRAIN.NUM_EPOCHS': 3,
                               'TRAIN.WARMUP_EPOCHS': 0})
    plan = build_plan(config, batches_per_epoch=10)
    assert plan.updates_per_epoch == 3 and plan.total_updates == 9
    assert [plan.count_micro_batches(update) for update in range(9)] == [4, 4, 2] * 3
    taken = np.cumsum([0] + [plan.count_micro_batches(update) for update in range(9)])
    assert [plan.count_batches_before(update) for update in range(10)] == taken.tolist()


def test_warmup_longer_than_the_run_is_shortened_and_said(caplog):
    schedule, plan = build(WARMUP_STEPS=70)
    assert plan.warmup_updates == 70 and not caplog.messages
    shortened, plan = build(WARMUP_STEPS=71)
    assert plan.warmup_updates == plan.total_updates == 70
    assert 'warmup of 71 updates is longer than the run: it takes all 70' in caplog.text
    assert [shortened(update) for update in range(70)] == [schedule(update) for update in range(70)]
