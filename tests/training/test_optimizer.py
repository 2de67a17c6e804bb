"""Which parameters decay, clipping, accumulation, and that a batch can be learnt."""

import numpy as np
import paddle
import pytest

from common.errors import UserError
from common.project import build_default_loss
from common.training.loop import TrainSetup, TrainState, read_loop_options, train
from common.training.losses import build_criterion
from common.training.optimizer import (
    build_optimizer,
    clip_gradients,
    group_parameters,
    scale_on_device,
)
from common.training.precision import build_precision
from common.training.schedule import build_plan, build_schedule
from ViT.config import get_config
from ViT.vit import build_vit

FLAGS = {
    'DATA.IMAGE_SIZE': 32, 'MODEL.PATCH_SIZE': 8, 'MODEL.EMBED_DIM': 32, 'MODEL.DEPTH': 2,
    'MODEL.NUM_HEADS': 2, 'MODEL.NUM_CLASSES': 10, 'TRAIN.WARMUP_EPOCHS': 0,
    'TRAIN.BASE_LR': 1e-3, 'TRAIN.LR_SCHEDULER.NAME': 'constant', 'VALIDATE_FREQ': 1000,
    'SAVE_FREQ': 1000, 'REPORT_FREQ': 1,
}
NO_DECAY = {'cls_token', 'position_embedding', 'patch_embedding.patch_embedding.bias',
            'classifier.bias', 'encoder.encoder_norm.weight', 'encoder.encoder_norm.bias'} | {
    f'encoder.layers.{block}.{name}' for block in (0, 1) for name in (
        'attn_norm.weight', 'attn_norm.bias', 'mlp_norm.weight', 'mlp_norm.bias',
        'attn.qkv.bias', 'attn.out.bias', 'mlp.fc1.bias', 'mlp.fc2.bias')}
DECAY = {'patch_embedding.patch_embedding.weight', 'classifier.weight'} | {
    f'encoder.layers.{block}.{name}.weight' for block in (0, 1)
    for name in ('attn.qkv', 'attn.out', 'mlp.fc1', 'mlp.fc2')}


class Nothing:
    """A saver and run log that do nothing but keep the reported steps."""

    def __init__(self):
        self.steps = []

    def write_metrics(self, event, **values):
        if event == 'train_step':
            self.steps.append(values)

    def __getattr__(self, name):
        return lambda *args, **values: None


class Batches(list):
    """Batches in a list, with what else a loader can do."""

    def describe_workers(self):
        return ''


def make_images(count, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((count, 3, 32, 32)).astype('float32'),
            rng.integers(0, 10, count))


def run_loop(batches, batches_per_epoch, **changes):
    """Train through the project's loop; return (state, reported steps)."""
    config = get_config(flags=FLAGS | {key.replace('__', '.'): value
                                       for key, value in changes.items()})
    paddle.seed(5)
    model = build_vit(config)
    plan = build_plan(config, batches_per_epoch)
    precision = build_precision(config, 'cpu')
    state = TrainState(model, build_optimizer(config, model), precision.scaler)
    log = Nothing()
    train(TrainSetup(
        options=read_loop_options(config), plan=plan,
        schedule=build_schedule(config, plan, 1), precision=precision,
        compute_loss=build_default_loss(config, build_criterion(config)),
        prepare=lambda batch: batch,
        batches=Batches([tuple(map(paddle.to_tensor, batch)) for batch in batches]),
        validate=lambda state: 0.0, saver=Nothing(), run_log=log, check_every=1), state)
    return state, log.steps


@pytest.mark.parametrize('optimizer', ['AdamW', 'SGD', 'Momentum', 'Adam', 'Lamb'])
def test_with_zero_gradients_only_the_intended_tensors_decay(optimizer):
    config = get_config(flags=FLAGS | {'TRAIN.OPTIMIZER.NAME': optimizer,
                                       'TRAIN.WEIGHT_DECAY': 0.1})
    model = build_vit(config)
    for parameter in model.parameters():        # some start at zero, where decay does not show
        parameter.set_value(paddle.full(parameter.shape, 0.5))
    for parameter in model.parameters():
        (parameter * 0).sum().backward()
    build_optimizer(config, model).step()
    changed = {name for name, parameter in model.named_parameters()
               if not (parameter.numpy() == 0.5).all()}
    assert changed == DECAY
    assert changed | NO_DECAY == {name for name, _ in model.named_parameters()}
    if optimizer == 'AdamW':                    # decoupled: w * (1 - lr * decay)
        np.testing.assert_allclose(model.classifier.weight.numpy(), 0.5 * (1 - 1e-4), rtol=1e-6)


def test_every_parameter_is_in_one_group_and_has_its_names():
    config = get_config(flags=FLAGS | {'TRAIN.WEIGHT_DECAY': 0.05, 'TRAIN.NO_WEIGHT_DECAY': [
        'classifier.weight']})
    model = build_vit(config)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = group_parameters(model, 0.05, config.TRAIN.NO_WEIGHT_DECAY)
    listed = {group['weight_decay']: [names[id(parameter)] for parameter in group['params']]
              for group in groups}
    assert set(listed[0.05]) == DECAY - {'classifier.weight'}
    assert set(listed[0.0]) == NO_DECAY | {'classifier.weight'}
    assert sum(map(len, listed.values())) == len(names)


def test_unknown_names_without_decay_are_refused():
    config = get_config(flags=FLAGS | {'TRAIN.NO_WEIGHT_DECAY': ['classifier.wait']})
    with pytest.raises(UserError, match='classifier.wait'):
        build_optimizer(config, build_vit(config))


def test_clipping_is_by_the_norm_of_all_gradients():
    parameters = [paddle.create_parameter([3], 'float32') for _ in range(2)]
    gradients = [np.array([3.0, 0, 0], 'float32'), np.array([0, 4.0, 0], 'float32')]

    def clip(limit):
        for parameter, gradient in zip(parameters, gradients):
            parameter.clear_gradient(False)
            (parameter * paddle.to_tensor(gradient)).sum().backward()
        return float(clip_gradients(parameters, limit)), [p.grad.numpy() for p in parameters]

    for limit, factor in ((1.0, 0.2), (2.5, 0.5), (6.0, 1.0), (None, 1.0)):
        norm, clipped = clip(limit)
        assert norm == pytest.approx(5.0)
        for found, gradient in zip(clipped, gradients):
            np.testing.assert_allclose(found, gradient * factor, rtol=1e-5)


@pytest.mark.parametrize('factor', [1.0, 0.3, 0.0, float('nan')])
def test_tensors_are_scaled_together(factor):
    """As an accelerator's gradients are: the product but for rounding, exactly for 1."""
    arrays = [np.random.default_rng(size).standard_normal(size).astype('float32')
              for size in (3, 40)] + [np.array([-1e30, 0], 'float32')]
    tensors = [paddle.to_tensor(array) for array in arrays]
    expected = [array * np.float32(factor) for array in arrays]
    scale_on_device(tensors, paddle.to_tensor([factor], 'float32'))
    for tensor, array in zip(tensors, expected):
        np.testing.assert_allclose(tensor.numpy(), array, rtol=0 if factor == 1 else 3e-7)


def test_accumulation_with_a_shorter_last_group_equals_the_large_batches():
    images, labels = make_images(40)
    small = [(images[i:i + 4], labels[i:i + 4]) for i in range(0, 40, 4)]
    # 10 micro-batches in groups of 4, 4 and 2: batches of 16, 16 and 8 images.
    large = [(images[a:b], labels[a:b]) for a, b in ((0, 16), (16, 32), (32, 40))]
    one, steps = run_loop(small * 2, 10, TRAIN__ACCUM_ITER=4, TRAIN__NUM_EPOCHS=2)
    other, expected = run_loop(large * 2, 3, TRAIN__NUM_EPOCHS=2)
    assert len(steps) == len(expected) == 6
    for step, reference in zip(steps, expected):
        assert step['loss'] == pytest.approx(reference['loss'], abs=1e-5)
        assert step['grad_norm'] == pytest.approx(reference['grad_norm'], rel=1e-4)
    # Adam divides by a root that is almost 0 for the keys' biases, which have no gradient.
    for (name, found), reference in zip(one.model.named_parameters(), other.model.parameters()):
        if not name.endswith('qkv.bias'):
            np.testing.assert_allclose(found.numpy(), reference.numpy(), atol=2e-4, err_msg=name)


@pytest.mark.parametrize('optimizer, rate', [('AdamW', 3e-3), ('SGD', 0.1)])
def test_one_batch_can_be_overfitted(optimizer, rate):
    batch = make_images(16)
    _, steps = run_loop([batch] * 100, 100, TRAIN__NUM_EPOCHS=1, TRAIN__OPTIMIZER__NAME=optimizer,
                        TRAIN__BASE_LR=rate)
    assert 1.5 < steps[0]['loss'] < 3.5 and steps[-1]['loss'] < 0.05
