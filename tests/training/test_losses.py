"""The losses against their definition in float64."""

import numpy as np
import paddle
import pytest

from common.config import build_default_config
from common.errors import UserError
from common.training.losses import build_criterion, compute_class_weights, per_sample_cross_entropy

CLASSES = 6
WEIGHTS = [0.5, 1.0, 2.0, 0.0, 3.0, 1.5]


def build_config(smoothing=0.0, weights=None):
    config = build_default_config()
    config.MODEL.NUM_CLASSES = CLASSES
    config.TRAIN.SMOOTHING = smoothing
    config.TRAIN.CLASS_WEIGHTS = weights
    return config


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    logits = (rng.normal(size=(7, CLASSES)) * 6).astype('float32')
    labels = np.array([0, 5, 3, 2, 2, 4, 1])
    targets = rng.dirichlet([0.5] * CLASSES, size=7).astype('float32')
    return logits, labels, targets


def log_softmax(logits):
    shifted = logits.astype(float) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def run(criterion, logits, targets):
    """Return the loss and its gradient with respect to the logits."""
    logits = paddle.to_tensor(logits, stop_gradient=False)
    loss = criterion(logits, paddle.to_tensor(targets))
    assert loss.dtype == paddle.float32 and loss.shape == []
    loss.backward()
    return float(loss), logits.grad.numpy()


@pytest.mark.parametrize('weights', [None, WEIGHTS])
@pytest.mark.parametrize('smoothing', [0.0, 0.1, 0.37])
def test_cross_entropy_of_labels(batch, smoothing, weights):
    logits, labels, _ = batch
    factors = np.ones(CLASSES) if weights is None else np.array(weights)
    smooth = (1 - smoothing) * np.eye(CLASSES)[labels] + smoothing / CLASSES
    weighted = smooth * factors / factors[labels].sum()
    expected = -(weighted * log_softmax(logits)).sum()
    gradient = np.exp(log_softmax(logits)) * weighted.sum(-1, keepdims=True) - weighted
    loss, grad = run(build_criterion(build_config(smoothing, weights)), logits, labels)
    assert loss == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(grad, gradient, rtol=0, atol=1e-6)


@pytest.mark.parametrize('weights', [None, WEIGHTS])
def test_cross_entropy_of_distributions(batch, weights):
    logits, _, targets = batch
    weighted = targets.astype(float) * (1 if weights is None else weights) / len(logits)
    expected = -(weighted * log_softmax(logits)).sum()
    gradient = np.exp(log_softmax(logits)) * weighted.sum(-1, keepdims=True) - weighted
    # Smoothing is in the targets already, so the option must not act a second time.
    criterion = build_criterion(build_config(0.1, weights), soft_targets=True)
    loss, grad = run(criterion, logits, targets)
    assert loss == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(grad, gradient, rtol=0, atol=1e-6)


def test_soft_and_hard_targets_agree(batch):
    logits, labels, _ = batch
    smooth = (0.9 * np.eye(CLASSES)[labels] + 0.1 / CLASSES).astype('float32')
    hard = run(build_criterion(build_config(0.1)), logits, labels)
    soft = run(build_criterion(build_config(0.1), soft_targets=True), logits, smooth)
    assert hard[0] == pytest.approx(soft[0], rel=1e-6)
    np.testing.assert_allclose(hard[1], soft[1], rtol=0, atol=1e-6)


def test_weighted_loss_of_samples_that_weigh_nothing_is_zero(batch):
    logits, _, _ = batch
    loss, grad = run(build_criterion(build_config(0.0, WEIGHTS)), logits, np.full(7, 3))
    assert loss == 0 and not grad.any()


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
@pytest.mark.parametrize('soft', [False, True])
def test_half_precision_logits_are_lifted_to_float32(batch, dtype, soft):
    """The loss equals that of the rounded logits, also inside auto_cast."""
    logits, labels, targets = batch
    low = paddle.to_tensor(logits).astype(dtype)
    rounded = low.astype('float32').numpy()
    criterion = build_criterion(build_config(0.1), soft_targets=soft)
    wanted = targets if soft else labels
    expected = run(criterion, rounded, wanted)[0]
    with paddle.amp.auto_cast(enable=True, level='O1', dtype='bfloat16'):
        loss = criterion(low, paddle.to_tensor(wanted))
    assert loss.dtype == paddle.float32
    assert float(loss) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize('soft', [False, True])
def test_logits_far_apart_are_not_cut(soft):
    """Paddle's cross entropy stops at 64 on the CPU."""
    logits = np.array([[1e4, -1e4, 0, 0, 0, 0]], 'float32')
    smooth = 0.9 * np.eye(CLASSES)[[1]] + 0.1 / CLASSES
    targets = smooth.astype('float32') if soft else np.array([1])
    loss, grad = run(build_criterion(build_config(0.1), soft_targets=soft), logits, targets)
    assert loss == pytest.approx(0.9 * 2e4 + 0.1 * (2e4 + 4e4) / 6, rel=1e-6)
    np.testing.assert_allclose(grad, np.eye(CLASSES)[[0]] - smooth, rtol=0, atol=1e-6)


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_broken_logits_show_in_the_loss(batch, value):
    logits, labels, targets = batch
    logits[2, 4] = value
    for soft, wanted in ((False, labels), (True, targets)):
        assert not np.isfinite(run(build_criterion(build_config(), soft_targets=soft),
                                   logits, wanted)[0])


@pytest.mark.parametrize('size', [1, 7])
def test_per_sample_cross_entropy(batch, size):
    logits, labels, _ = (part[:size] for part in batch)
    losses = per_sample_cross_entropy(paddle.to_tensor(logits), paddle.to_tensor(labels))
    assert losses.shape == [size]
    expected = -log_softmax(logits)[np.arange(size), labels]
    np.testing.assert_allclose(losses.numpy(), expected, rtol=1e-6, atol=1e-6)


def test_balanced_weights_give_every_class_the_same_say():
    counts = [10, 20, 30, 5, 25, 10]
    weights = compute_class_weights(['balanced'], CLASSES, counts)
    np.testing.assert_allclose(np.multiply(weights, counts), 100 / 6)
    assert compute_class_weights(None, CLASSES, counts) is None


@pytest.mark.parametrize('weights, counts, message', [
    ([1.0, 2.0], None, 'TRAIN.CLASS_WEIGHTS has 2 numbers, MODEL.NUM_CLASSES is 6'),
    (['balance'], None, "'balance' is not a number"),
    ([1, 1, 1, 1, 1, -2], None, 'must be 0 or more and finite, not -2'),
    ([1, 1, 1, 1, 1, float('nan')], None, 'finite, not nan'),
    ([0, 0, 0, 0, 0, 0], None, 'are all 0'),
    (['balanced'], None, 'needs the number of samples of each class'),
    (['balanced'], [3, 4], 'the training data has 2 classes, MODEL.NUM_CLASSES is 6'),
    (['balanced'], [3, 4, 0, 1, 1, 1], 'class 2 has no training sample'),
])
def test_wrong_class_weights_are_refused(weights, counts, message):
    with pytest.raises(UserError) as caught:
        build_criterion(build_config(weights=weights), counts)
    assert message in str(caught.value)


@pytest.mark.parametrize('label', [CLASSES, -1])
def test_labels_out_of_range_raise(batch, label):
    logits, labels, _ = batch
    labels[1] = label
    for compute in (build_criterion(build_config(0.1)), per_sample_cross_entropy):
        with pytest.raises(ValueError):
            compute(paddle.to_tensor(logits), paddle.to_tensor(labels))


def test_a_common_offset_costs_no_digits():
    logits = np.array([[0, 1, 2, 3, 1, 0]], 'float32')
    losses = [per_sample_cross_entropy(paddle.to_tensor(logits + offset), paddle.to_tensor([1]))
              for offset in (0, 20000)]
    assert float(losses[0]) == pytest.approx(-log_softmax(logits)[0, 1], rel=1e-6)
    assert float(losses[1]) == float(losses[0])


@pytest.mark.parametrize('weights', [None, WEIGHTS])
def test_binary_cross_entropy_takes_every_class_in_the_image_for_one(batch, weights):
    logits, labels, targets = batch
    logits[0] = 0                           # as a new head gives them
    logits[1] *= 40                         # where exp overflows
    factors = np.ones(CLASSES) if weights is None else np.array(weights)
    config = build_config(weights=weights)
    config.TRAIN.LOSS = 'binary'
    targets[targets < 0.05] = 0
    for given, there in ((labels, np.eye(CLASSES)[labels]), (targets, (targets > 0) * 1.0)):
        wide = logits.astype(float)
        terms = there * np.logaddexp(0, -wide) + (1 - there) * np.logaddexp(0, wide)
        loss, grad = run(build_criterion(config), logits, given)
        assert loss == pytest.approx((terms * factors).mean(), rel=1e-6)
        gradient = (1 / (1 + np.exp(-np.clip(wide, -500, 500))) - there) * factors / wide.size
        np.testing.assert_allclose(grad, gradient, rtol=0, atol=1e-7)
    config.TRAIN.SMOOTHING = 0.1
    with pytest.raises(UserError, match='binary.*set TRAIN.SMOOTHING 0'):
        build_criterion(config)
