"""What half precision must not spoil: norms, figures, averages, and going on in float32."""

from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from paddle import nn

from common.checkpoints.optimizer_state import MASTER_WEIGHT, write_optimizer
from common.training.ema import ModelEma
from common.training.meter import MAX_SKIPPED, Meter
from common.training.optimizer import clip_gradients
from common.training.out_of_memory import is_out_of_memory


def make_parameter(values, dtype):
    return SimpleNamespace(grad=paddle.to_tensor(values, dtype='float32').astype(dtype))


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
@pytest.mark.parametrize('size', [1e-5, 1.0, 300.0])
def test_the_norm_of_half_precision_gradients_is_summed_in_float32(dtype, size):
    """In float16 the squares of 1e-5 are zero, and those of 300 times 1,000 are infinite."""
    rng = np.random.default_rng(0)
    values = [size * rng.standard_normal(1000), size * rng.standard_normal((20, 3))]
    parameters = [make_parameter(values[0], dtype), make_parameter(values[1], 'float32')]
    exact = np.sqrt(sum((parameter.grad.astype('float32').numpy().astype('float64') ** 2).sum()
                        for parameter in parameters))
    norm = clip_gradients(parameters, None)
    assert norm.dtype == paddle.float32
    assert norm.item() == pytest.approx(exact, rel=1e-5)


def test_figures_in_bfloat16_are_read_as_numbers():
    meter = Meter()
    loss, norm = (paddle.to_tensor(value).astype('bfloat16') for value in (2.5, 1.64))
    meter.add(0, loss, norm, 8)
    assert meter.read(scales=False)[0] is None
    assert meter.grad_norm == pytest.approx(1.64, rel=1e-2)
    assert meter.last_loss == 2.5
    meter.add(1, paddle.to_tensor(2.5), paddle.to_tensor(float('nan')).astype('bfloat16'), 8)
    assert meter.read(scales=False)[0] == 1


def test_gradients_that_stay_infinite_end_the_run():
    """Loss scaling skips an overflow; thirty in a row are none of its making."""
    meter = Meter()
    for update in range(2 * MAX_SKIPPED):
        norm = 1.0 if update == MAX_SKIPPED - 1 else float('inf')
        meter.add(update, paddle.to_tensor(1.0), paddle.to_tensor(norm), 8)
        bad = meter.read(scales=True)[0] if update % 7 == 6 else None
        assert bad is None, update
    assert meter.skipped == MAX_SKIPPED - len(meter.pending)
    meter.add(2 * MAX_SKIPPED, paddle.to_tensor(1.0), paddle.to_tensor(float('inf')), 8)
    assert meter.read(scales=True)[0] == 2 * MAX_SKIPPED - 1
    assert meter.overflows == 2 * MAX_SKIPPED


def test_the_average_is_of_the_weights_that_are_not_rounded():
    model = nn.Linear(3, 2)
    exact = {parameter.name: parameter + 1e-4 for parameter in model.parameters()}
    ema = ModelEma(model, 0.5, optimizer=SimpleNamespace(_master_weights=exact))
    before = {name: value.numpy() for name, value in model.state_dict().items()}
    ema.update()
    for name, value in ema.averages.items():
        np.testing.assert_allclose(value.numpy() - before[name], 0.5e-4, rtol=1e-2)


def test_going_on_in_float32_takes_the_master_weights():
    model = nn.Linear(3, 2)
    optimizer = paddle.optimizer.AdamW(parameters=model.parameters())
    rng = np.random.default_rng(1)
    exact = {name: rng.standard_normal(value.shape).astype('float32')
             for name, value in model.state_dict().items()}
    rounded = {name: value.astype('float16').astype('float32') for name, value in exact.items()}
    one = np.ones(1, 'float32')
    state = {name: {MASTER_WEIGHT: value, 'moment1': value, 'moment2': value,
                    'beta1_pow_acc': one, 'beta2_pow_acc': one} for name, value in exact.items()}
    write_optimizer(optimizer, model, state, rounded)
    for name, value in model.state_dict().items():
        assert np.array_equal(value.numpy(), exact[name]), name


@pytest.mark.parametrize('text', [
    'CUBLAS error(3), CUBLAS_STATUS_ALLOC_FAILED.', 'CUDNN error(4), CUDNN_STATUS_ALLOC_FAILED.',
    'CUDNN error(4003), CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED.',
    'XPU API return wrong value[-4, XPUERR_NOMEM]', 'XPU memory is not enough memory'])
def test_what_says_that_memory_ran_out(text):
    assert is_out_of_memory(RuntimeError(f'(External) {text}'))
    assert not is_out_of_memory(RuntimeError('CUBLAS_STATUS_NOT_INITIALIZED'))
