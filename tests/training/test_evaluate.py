"""Evaluation: means over every sample once, against NumPy."""

import math

import numpy as np
import paddle
import pytest

from common.errors import Interrupted
from common.training.evaluate import evaluate, find_hits, sum_exactly
from common.training.losses import per_sample_cross_entropy
from common.training.precision import Precision


class Given(paddle.nn.Layer):
    """Returns the logits that it is given as images."""

    def forward(self, images):
        assert not self.training
        return images


def run(logits, labels, batch_size):
    model = Given()
    batches = [(paddle.to_tensor(logits[i:i + batch_size]),
                paddle.to_tensor(labels[i:i + batch_size]), None)
               for i in range(0, len(labels), batch_size)]
    calls = []
    result = evaluate(model, batches, lambda images: images,
                      Precision(), lambda: calls.append(1))
    assert model.training and len(calls) == len(batches)
    return result


@pytest.mark.parametrize('classes', [2, 3, 5, 6, 40])
def test_figures_for_any_number_of_classes_and_batch_size(classes):
    rng = np.random.default_rng(classes)
    logits = (3 * rng.standard_normal((101, classes))).astype('float32')
    labels = rng.integers(0, classes, 101)
    exact = logits.astype('float64')
    own = exact[np.arange(101), labels]
    loss = (np.log(np.exp(exact).sum(1)) - own).mean()
    ranks = (exact > own[:, None]).sum(1)
    for batch_size in (1, 7, 64, 101):
        result = run(logits, labels, batch_size)
        losses = [per_sample_cross_entropy(*map(paddle.to_tensor, (
            logits[i:i + batch_size], labels[i:i + batch_size])))
            for i in range(0, 101, batch_size)]
        assert result.loss == math.fsum(np.concatenate(losses).astype('float64')) / 101
        assert result.images == 101 and result.seconds > 0
        assert result.loss == pytest.approx(loss, abs=1e-6)
        assert result.acc1 == pytest.approx(100 * (ranks < 1).mean(), abs=1e-9)
        assert result.acc5 == pytest.approx(100 * (ranks < min(5, classes)).mean(), abs=1e-9)
    assert (result.acc5 == 100) == (classes <= 5)


def test_a_signal_ends_it_after_the_batch():
    model, done = Given(), []
    batches = [(paddle.zeros([2, 3]), paddle.zeros([2], 'int64'), None)] * 5
    with pytest.raises(Interrupted) as stopped:
        evaluate(model, batches, lambda images: images, Precision(), lambda: done.append(1),
                 get_signal=lambda: 15 if len(done) == 2 else 0)
    assert stopped.value.exit_code == 128 + 15 and len(done) == 2 and model.training


def test_large_logits_do_not_overflow():
    result = run(np.array([[1e4, 0.0], [0.0, 1e4]], 'float32'), np.array([0, 0]), 2)
    assert result.loss == pytest.approx(5e3) and result.acc1 == 50.0


def test_ties_go_to_the_lower_class_and_nan_hits_nothing():
    logits = np.zeros([3, 7], 'float32')
    logits[2, 3] = np.nan
    hits = find_hits(paddle.to_tensor(logits), paddle.to_tensor(np.array([0, 5, 0])))
    assert hits.numpy().tolist() == [[True, True], [False, False], [False, False]]


def test_sums_do_not_depend_on_order_or_sharing():
    numbers = np.random.default_rng(0).lognormal(0, 9, 1000)
    total, rest = sum_exactly(numbers)
    assert total == math.fsum(numbers) and abs(rest) <= abs(total) * 2 ** -53
    for split in (1, 3, 500):
        parts = [sum_exactly(part) for part in np.array_split(numbers[::-1], split)]
        assert sum_exactly(np.ravel(parts))[0] == total
    assert math.isnan(sum_exactly(np.array([1.0, np.nan]))[0])
    assert sum_exactly(np.array([1.0, np.inf]))[0] == math.inf
