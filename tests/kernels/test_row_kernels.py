"""GELU, softmax, LayerNorm's gradients, dropout against float64, with the kernels and without."""

import logging
import math
import platform
import shutil

import numpy as np
import paddle
import pytest

from common.kernels import compiled, row_kernels
from common.machine import host_memory
from common.machine.environment import read_cpu

needs_compiler = pytest.mark.skipif(not shutil.which('cc'), reason='needs a C compiler')
# Rows shorter than a vector, of whole vectors, and of any length; enough for several threads.
SHAPES = [(3, 1), (2, 7), (5, 16), (4, 3, 33), (300, 197), (130, 768)]


@needs_compiler
def test_kernels_are_there():
    assert row_kernels.load_kernels() is not None


def draw(shape, seed=0, scale=1.0):
    values = scale * np.random.default_rng(seed).standard_normal(shape)
    return values.astype('float32')


def to_double(tensor):
    return tensor.numpy().astype('float64')


def gelu_and_slope(x, approximate):
    """Return both in float64, from the definition."""
    if approximate:
        s = math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3)
        cdf = (1 + np.tanh(s)) / 2
        slope = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x ** 2)
        return x * cdf, cdf + x * (1 - np.tanh(s) ** 2) / 2 * slope
    cdf = np.vectorize(lambda item: math.erfc(-item / math.sqrt(2)) / 2, otypes='d')(x)
    return x * cdf, cdf + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)


@pytest.mark.parametrize('approximate', [False, True])
@pytest.mark.parametrize('shape', SHAPES)
def test_gelu(way, shape, approximate):
    check_gelu(draw(shape, scale=2.0), approximate, get_unit(way))


@pytest.mark.parametrize('approximate', [False, True])
def test_gelu_everywhere(way, approximate):
    check_gelu(np.linspace(-20, 20, 100_001, dtype='float32')[None], approximate,
               get_unit(way))
    extremes = np.array([[0.0, -0.0, 1e-30, -1e-30, 1e4, -1e4, 1e10, -1e10]], 'float32')
    check_gelu(extremes, approximate, get_unit(way))


def check_gelu(x, approximate, unit=1e-7):
    value, slope = gelu_and_slope(x.astype('float64'), approximate)
    found = to_double(row_kernels.gelu(paddle.to_tensor(x), approximate))
    np.testing.assert_allclose(found, value, rtol=6 * unit, atol=4 * unit)
    above = draw(x.shape, seed=1)
    grad = paddle.to_tensor(above)
    row_kernels.gelu_backward_(grad, paddle.to_tensor(x), approximate)
    np.testing.assert_allclose(to_double(grad), above.astype('float64') * slope,
                               rtol=1e-6, atol=4e-6)


def get_unit(way):
    return 1e-7 if way == 'kernels' else 2e-7           # without them it is Paddle's GELU


@needs_compiler
def test_gelu_keeps_the_digits_of_its_tail():
    """Far below 0 the kernel is right relative to the value, where erf + 1 has no digits left."""
    x = np.linspace(-12, -1, 5000, dtype='float32')[None]
    value, _ = gelu_and_slope(x.astype('float64'), False)
    found = to_double(row_kernels.gelu(paddle.to_tensor(x), False))
    np.testing.assert_allclose(found, value, rtol=1e-5)


@needs_compiler
def test_softmax_keeps_its_digits():
    """Of two scores it is exp's own error: a few units in the last place."""
    scores = np.zeros((4000, 2), 'float32')
    scores[:, 1] = -np.linspace(0, 80, 4000)
    powers = np.exp(scores.astype('float64'))
    exact = powers / powers.sum(axis=1, keepdims=True)
    found = to_double(row_kernels.softmax_(paddle.to_tensor(scores)))
    np.testing.assert_allclose(found, exact, rtol=4e-7)


@pytest.mark.parametrize('shape', [*SHAPES, (1,), (40_000, 17)])
@pytest.mark.parametrize('rate', [0.1, 0.5])
@pytest.mark.parametrize('threads', [1, 3])
def test_dropout(way, shape, rate, threads, monkeypatch):
    """The choice is NumPy's Philox's, whatever the number of threads."""
    monkeypatch.setattr(host_memory, 'count_threads', lambda: threads)
    x, key = draw(shape), 0x1234_5678_9abc_def0
    words = np.random.Philox(key=key).random_raw(-(-x.size // 4))
    kept = words.view(np.uint16)[:x.size].reshape(shape) >= round(65536 * rate)
    expected = np.where(kept, x.astype('float64') / (1 - rate), 0)
    tensor = paddle.to_tensor(x)
    mask = row_kernels.Mask(x.size, rate, key)
    found = row_kernels.dropout(tensor, mask)
    np.testing.assert_allclose(to_double(found), expected, rtol=3e-7)
    np.testing.assert_array_equal(tensor.numpy(), x)
    assert row_kernels.dropout(tensor, mask, tensor) is tensor
    np.testing.assert_array_equal(tensor.numpy(), found.numpy())
    if x.size > 100_000:
        assert abs((found.numpy() == 0).mean() - rate) < 5 * math.sqrt(rate / x.size)
        other = row_kernels.dropout(found, row_kernels.Mask(x.size, rate, key + 1))
        assert not np.array_equal(other.numpy() == 0, found.numpy() == 0)


@pytest.mark.parametrize('shape', [*SHAPES, (40_000, 17)])
@pytest.mark.parametrize('threads', [1, 3])
def test_dropout_within_gelu_and_softmax(way, shape, threads, monkeypatch):
    """A mask in the kernels does what dropout after them, and before their gradients, does."""
    monkeypatch.setattr(host_memory, 'count_threads', lambda: threads)
    mask = row_kernels.Mask(math.prod(shape), 0.3, 5)
    x, above = (paddle.to_tensor(draw(shape, seed)) for seed in (0, 1))
    active, probabilities = row_kernels.gelu(x, False), row_kernels.softmax_(x.clone())
    before = row_kernels.dropout(above, mask)

    np.testing.assert_array_equal(row_kernels.gelu(x, False, mask).numpy(),
                                  row_kernels.dropout(active, mask).numpy())
    expected, found = before.clone(), above.clone()
    row_kernels.gelu_backward_(expected, x, False)
    row_kernels.gelu_backward_(found, x, False, mask)
    np.testing.assert_array_equal(found.numpy(), expected.numpy())

    kept = paddle.empty_like(x)
    np.testing.assert_array_equal(row_kernels.softmax_(x.clone(), mask, kept).numpy(),
                                  probabilities.numpy())
    np.testing.assert_array_equal(kept.numpy(), row_kernels.dropout(probabilities, mask).numpy())
    scores = x.clone()
    row_kernels.softmax_(scores, mask, scores)
    np.testing.assert_array_equal(scores.numpy(), kept.numpy())
    expected, found = before.clone(), above.clone()
    row_kernels.softmax_backward_(expected, probabilities)
    row_kernels.softmax_backward_(found, probabilities, mask)
    np.testing.assert_array_equal(found.numpy(), expected.numpy())


def test_dropout_of_everything(way):
    x = paddle.to_tensor(np.array([[1.0, np.inf, -1.0]], 'float32'))
    found = row_kernels.dropout(x, row_kernels.Mask(3, 1.0, 5))
    np.testing.assert_array_equal(found.numpy(), np.zeros((1, 3)))


@pytest.mark.parametrize('shape', SHAPES)
def test_softmax(way, shape):
    scores = draw(shape, scale=10.0)
    exact = scores.astype('float64')
    exact = np.exp(exact - exact.max(axis=-1, keepdims=True))
    exact /= exact.sum(axis=-1, keepdims=True)
    tensor = paddle.to_tensor(scores)
    result = row_kernels.softmax_(tensor)
    np.testing.assert_allclose(to_double(result), exact, rtol=2e-6, atol=1e-9)
    np.testing.assert_array_equal(tensor.numpy(), result.numpy())          # in place

    above = draw(shape, seed=1)
    grad = paddle.to_tensor(above)
    row_kernels.softmax_backward_(grad, result)
    double = above.astype('float64')
    expected = exact * (double - (exact * double).sum(axis=-1, keepdims=True))
    np.testing.assert_allclose(to_double(grad), expected, rtol=1e-5, atol=1e-6)


@needs_compiler
def test_softmax_of_far_scores():
    scores = np.zeros((2, 40), 'float32')
    scores[0, 3], scores[1] = 500.0, np.linspace(-1e4, 3e38, 40)
    result = row_kernels.softmax_(paddle.to_tensor(scores)).numpy()
    expected = np.zeros((2, 40))
    expected[0, 3] = expected[1, 39] = 1
    np.testing.assert_allclose(result, expected, atol=1e-30)


@needs_compiler
@pytest.mark.parametrize('at', [0, 5, 17, 39])
@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_what_is_not_finite_does_not_vanish(at, bad):
    """Paddle's softmax on the CPU gives ordinary probabilities for a row with a NaN."""
    values = draw((3, 40))
    values[1, at] = bad
    tensor = paddle.to_tensor(values)
    for approximate in (False, True):
        assert not np.isfinite(row_kernels.gelu(tensor, approximate).numpy()[1, at])
    grads = row_kernels.layer_norm_backward(
        paddle.ones([3, 40]), tensor, paddle.ones([40]), 1e-6)
    assert np.isnan(grads[0].numpy()[1]).all() and np.isfinite(grads[0].numpy()[[0, 2]]).all()
    probabilities = row_kernels.softmax_(tensor).numpy()
    assert np.isnan(probabilities[1]).any() and np.isfinite(probabilities[[0, 2]]).all()


@pytest.mark.parametrize('shape', SHAPES[1:])           # of a single number the gradient is 0
def test_layer_norm(way, shape):
    x, above, weight = 30 + draw(shape), draw(shape, 1), draw(shape[-1:], 2)
    grads = row_kernels.layer_norm_backward(
        paddle.to_tensor(above), paddle.to_tensor(x), paddle.to_tensor(weight), 1e-3)
    x, above, weight = (array.astype('float64') for array in (x, above, weight))
    deviation = np.sqrt(x.var(axis=-1, keepdims=True) + 1e-3)
    normal = (x - x.mean(axis=-1, keepdims=True)) / deviation
    inner = above * weight
    expected = (inner - inner.mean(axis=-1, keepdims=True)
                - normal * (inner * normal).mean(axis=-1, keepdims=True)) / deviation
    rows = tuple(range(len(shape) - 1))
    for found, exact in zip(grads, (expected, (above * normal).sum(rows), above.sum(rows))):
        scale = np.abs(exact).max() + 1e-3
        np.testing.assert_allclose(to_double(found) / scale, exact / scale, atol=5e-6)


def test_two_runs_are_identical(way):
    x, above = paddle.to_tensor(draw((5000, 300))), paddle.to_tensor(draw((5000, 300), 1))
    runs = [row_kernels.layer_norm_backward(above, x, paddle.ones([300]), 1e-6)
            for _ in range(5)]
    for grads in runs[1:]:
        for found, expected in zip(grads, runs[0]):
            np.testing.assert_array_equal(found.numpy(), expected.numpy())


# Of processors without any vector instructions to speak of, with 256-bit and with 512-bit ones.
@pytest.mark.skipif(platform.machine() != 'x86_64', reason='names x86-64 processors')
@needs_compiler
@pytest.mark.parametrize('processor, feature', [
    ('x86-64', 'sse2'), ('x86-64-v3', 'avx2'), ('x86-64-v4', 'avx512vl')])
def test_kernels_of_other_processors(processor, feature, empty_library_cache, monkeypatch):
    if feature not in read_cpu()[1]:
        pytest.skip(f'this processor lacks {feature}')
    monkeypatch.setattr(compiled, 'COMPILE', (*compiled.COMPILE, f'-march={processor}'))
    monkeypatch.setattr(compiled, 'read_cpu', lambda: ('', set()))      # no -march=native
    assert row_kernels.load_kernels() is not None
    for shape in SHAPES:
        check_gelu(draw(shape), approximate=False)
        test_softmax(None, shape)
        if shape[-1] > 1:
            test_layer_norm(None, shape)


def test_the_log_says_why_there_are_none(empty_library_cache, monkeypatch, caplog):
    monkeypatch.setenv(compiled.SWITCH, '0')
    with caplog.at_level(logging.INFO):
        assert row_kernels.load_kernels() is None
    assert [record.message for record in caplog.records] == [
        'Kernels for training: none (turned off by VIT_COMPILED=0). NumPy does it, more slowly.']
