"""The averaged weights: closed form, precision, and what is left alone."""

import numpy as np
import paddle
import pytest
from paddle import nn

from common.errors import UserError
from common.training.ema import ModelEma


def build_model():
    paddle.seed(3)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1D(3), nn.Linear(3, 2))
    model[2].bias.stop_gradient = True
    return model


def set_weights(model, rng):
    for parameter in model.parameters():
        if not parameter.stop_gradient:
            parameter.set_value(rng.standard_normal(parameter.shape).astype('float32'))


@pytest.mark.parametrize('warmup', [False, True])
def test_equals_the_closed_form_after_60_updates(warmup):
    model = build_model()
    ema = ModelEma(model, decay=0.9, warmup=warmup)
    history = [model[0].weight.numpy().astype('float64')]
    rng = np.random.default_rng(0)
    for _ in range(60):
        set_weights(model, rng)
        history.append(model[0].weight.numpy().astype('float64'))
        ema.update()
    # average = sum over k of (1 - d_k) * prod of later decays * weight_k
    decays = [min(0.9, (1 + n) / (10 + n)) if warmup else 0.9 for n in range(1, 61)]
    expected = history[0] * np.prod(decays)
    for k in range(60):
        expected += (1 - decays[k]) * np.prod(decays[k + 1:]) * history[k + 1]
    difference = np.abs(ema.averages['0.weight'].numpy() - expected).max()
    assert difference <= 1e-6
    assert ema.updates == 60


def test_warmup_ends_at_the_decay():
    model = build_model()
    slow, warm = ModelEma(model, 0.5), ModelEma(model, 0.5, warmup=True)
    rng = np.random.default_rng(0)
    for _ in range(40):                     # (1 + n) / (10 + n) passes 0.5 at n = 8
        set_weights(model, rng)
        slow.update()
        warm.update()
    np.testing.assert_allclose(slow.averages['0.weight'].numpy(),
                               warm.averages['0.weight'].numpy(), atol=1e-6)


def test_frozen_parameters_and_buffers_are_the_models_own():
    model = build_model()
    ema = ModelEma(model, 0.9)
    assert set(ema.averages) == {'0.weight', '0.bias', '1.weight', '1.bias', '2.weight'}
    model[1]._mean.set_value(np.array([1, 2, 3], 'float32'))
    model[2].bias.set_value(np.array([7, 8], 'float32'))
    set_weights(model, np.random.default_rng(0))
    ema.update()
    state = ema.state_dict()
    assert set(state) == set(model.state_dict())
    np.testing.assert_array_equal(state['1._mean'].numpy(), [1, 2, 3])
    np.testing.assert_array_equal(state['2.bias'].numpy(), [7, 8])
    assert np.abs(state['0.weight'].numpy() - model[0].weight.numpy()).max() > 0.1


def test_averaged_weights_are_used_in_the_block_and_undone_after_it():
    model = build_model()
    model.eval()
    ema = ModelEma(model, 0.9)
    set_weights(model, np.random.default_rng(0))
    ema.update()
    before = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    images = paddle.ones([2, 4])
    logits = model(images).numpy()
    reference = build_model()
    reference.set_state_dict(ema.state_dict())
    reference.eval()
    with pytest.raises(ZeroDivisionError), ema.averaged_weights() as averaged:
        np.testing.assert_array_equal(averaged(images).numpy(), reference(images).numpy())
        raise ZeroDivisionError
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), before[name], err_msg=name)
    np.testing.assert_array_equal(model(images).numpy(), logits)
    model(images).sum().backward()          # still trainable
    assert model[0].weight.grad is not None


def test_averages_are_float32_under_half_precision_weights():
    model = nn.Linear(2, 2)
    model.weight.set_value(np.ones((2, 2), 'float32'))
    model.bfloat16()
    ema = ModelEma(model, 0.999)
    model.weight.set_value(paddle.full([2, 2], 2.0).cast('bfloat16'))
    ema.update()
    # bfloat16 has 8 bits: 1.001 would round to 1 and the average would never move.
    np.testing.assert_allclose(ema.averages['weight'].numpy(), 1.001, atol=1e-6)
    with ema.averaged_weights():
        assert model.weight.dtype == paddle.bfloat16
    assert model.weight.cast('float32').numpy()[0, 0] == 2


def test_set_state_dict_refuses_another_model():
    model = build_model()
    ema = ModelEma(model, 0.9)
    state = {name: tensor.numpy() for name, tensor in ema.state_dict().items()}
    ema.set_state_dict(state, updates=5)
    assert ema.updates == 5
    with pytest.raises(UserError, match='lack 0.weight'):
        ema.set_state_dict({}, updates=0)
    state['2.weight'] = np.zeros((3, 9), 'float32')
    with pytest.raises(UserError, match=r'2.weight has shape \[3, 9\], expected \[3, 2\]'):
        ema.set_state_dict(state, updates=0)
