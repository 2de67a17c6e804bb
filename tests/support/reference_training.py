"""Training as two reference runs were: timm's ViT in PyTorch on the digits.

tests/fixtures/training/*.json hold losses, gradient norms, rates and final weights of
those runs. Model, order of the data and initial weights are fixed by rules, so nothing
but the loop, optimizer, schedule, clipping, smoothing, accumulation and EMA is compared.
"""

import json
from types import SimpleNamespace

import numpy as np
import paddle

from common.checkpoints.saver import SaveOptions, Saver
from common.data.digits import load_digits
from common.project import build_default_loss
from common.run.log import RunLog
from common.training.ema import ModelEma
from common.training.loop import TrainSetup, TrainState, read_loop_options, train
from common.training.losses import build_criterion
from common.training.optimizer import build_optimizer
from common.training.precision import build_precision
from common.training.schedule import build_plan, build_schedule
from tests.support.paths import FIXTURES
from tests.support.recipe import fill_by_recipe
from ViT.config import get_config
from ViT.vit import build_vit

TRAINING = FIXTURES / 'training'
MODEL = {
    'DATA.IMAGE_SIZE': 32, 'MODEL.PATCH_SIZE': 8, 'MODEL.EMBED_DIM': 48, 'MODEL.DEPTH': 3,
    'MODEL.NUM_HEADS': 4, 'MODEL.NUM_CLASSES': 10, 'DATA.BATCH_SIZE': 64, 'REPORT_FREQ': 1,
    'VALIDATE_FREQ': 100, 'SAVE_FREQ': 100,
}
ADAMW = MODEL | {
    'TRAIN.NUM_EPOCHS': 3, 'TRAIN.WARMUP_STEPS': 10, 'TRAIN.BASE_LR': 1e-3, 'TRAIN.END_LR': 1e-5,
    'TRAIN.WEIGHT_DECAY': 0.05, 'TRAIN.SMOOTHING': 0.1, 'TRAIN.GRAD_CLIP': 1.0,
    'TRAIN.MODEL_EMA': True, 'TRAIN.MODEL_EMA_DECAY': 0.99,
}
SGD = MODEL | {
    'TRAIN.NUM_EPOCHS': 3, 'TRAIN.WARMUP_STEPS': 5, 'TRAIN.BASE_LR': 0.03, 'TRAIN.END_LR': 0.0,
    'TRAIN.WEIGHT_DECAY': 0.0, 'TRAIN.GRAD_CLIP': None, 'TRAIN.ACCUM_ITER': 2,
    'TRAIN.OPTIMIZER.NAME': 'SGD', 'TRAIN.OPTIMIZER.MOMENTUM': 0.9,
}

RUNS = {'adamw': ADAMW, 'sgd_accum': SGD}


def load_data():
    images, labels = load_digits()
    pixels = images.astype('float32') / 16
    pixels = pixels.repeat(4, axis=1).repeat(4, axis=2)[:, None].repeat(3, axis=1)
    return (pixels - 0.5) / 0.5, labels.astype('int64')


class MetricsOnly(RunLog):
    """A run log without a folder that keeps the metrics."""

    def __init__(self):
        super().__init__(None)
        self.steps = []

    def write_metrics(self, event, **values):
        if event == 'train_step':
            self.steps.append(values)


class Batches(list):
    """What a loader is to the loop."""

    def describe_workers(self):
        return ''

    def describe_waiting(self, share):
        return ''


def is_key_bias(name):
    return name.endswith('attn.qkv.bias')


def describe(tensors):
    """Mean and deviation of each tensor, without the part of qkv's bias that has no gradient."""
    described = {}
    for name, value in tensors.items():
        value = np.asarray(value, dtype='float64').ravel()
        if is_key_bias(name):
            third = len(value) // 3
            value = np.delete(value, slice(third, 2 * third))
        described[name] = [value.mean(), value.std()]
    return described


def train_as_reference(name, build_model=build_vit):
    """Train as a reference did, through the project's own loop.

    name: of RUNS. Returns (the reference's figures, the same of this run).
    """
    flags = RUNS[name]
    config = get_config(flags=flags)
    pixels, labels = load_data()
    model = build_model(config)
    fill_by_recipe(model, salt=7)
    order = np.random.Generator(np.random.PCG64(11)).permutation(1280)
    epoch = [(paddle.to_tensor(pixels[order[first:first + 64]]),
              paddle.to_tensor(labels[order[first:first + 64]])) for first in range(0, 1280, 64)]
    batches = Batches(epoch * config.TRAIN.NUM_EPOCHS)
    plan = build_plan(config, batches_per_epoch=20)
    ema = ModelEma(model, config.TRAIN.MODEL_EMA_DECAY) if config.TRAIN.MODEL_EMA else None
    precision = build_precision(config, 'cpu')
    state = TrainState(model, build_optimizer(config, model), precision.scaler, ema)
    saver = Saver(None, SaveOptions(), plan, record={})
    log = MetricsOnly()
    train(TrainSetup(
        options=read_loop_options(config), plan=plan,
        schedule=build_schedule(config, plan, 64), precision=precision,
        compute_loss=build_default_loss(config, build_criterion(config)),
        prepare=lambda batch: batch, batches=batches,
        validate=lambda state: 0.0, saver=saver, run_log=log, check_every=1), state)
    model.eval()
    with paddle.no_grad():
        logits = model(paddle.to_tensor(pixels[1280:])).numpy()
    found = SimpleNamespace(
        steps=log.steps, logits=logits, correct=(logits.argmax(1) == labels[1280:]).sum(),
        weights={name: p.numpy() for name, p in model.named_parameters()},
        ema=None if ema is None else {name: ema.averages[name].numpy() for name in ema.averages})
    return json.loads((TRAINING / f'{name}.json').read_text()), found


def check_losses(expected, run):
    losses = expected.get('update_loss', expected['loss'])
    assert len(run.steps) == len(losses)
    np.testing.assert_allclose([step['loss'] for step in run.steps], losses, atol=2e-5, rtol=0)


def check_learning_rates(expected, run):
    np.testing.assert_allclose([step['lr'] for step in run.steps], expected['lr'], atol=1e-9,
                               rtol=0)


def check_gradient_norms(expected, run):
    np.testing.assert_allclose([step['grad_norm'] for step in run.steps], expected['grad_norm'],
                               rtol=2e-4)


def check_final_weights_and_logits(expected, run):
    found = describe(run.weights)
    reference = expected['final']['tensor_mean_std']
    assert set(found) == set(reference)
    for name in reference:
        np.testing.assert_allclose(found[name], reference[name], atol=2e-6, rtol=0, err_msg=name)
    assert abs(int(run.correct) - expected['final']['val_correct']) <= 1
    np.testing.assert_allclose(run.logits[:3], expected['final']['val_logits_first3'], atol=1e-4,
                               rtol=0)


def check_averaged_weights(expected, run):
    if run.ema is None:
        assert 'ema' not in expected
        return
    found = describe(run.ema)
    for name, reference in expected['ema']['tensor_mean_std'].items():
        np.testing.assert_allclose(found[name], reference, atol=2e-6, rtol=0, err_msg=name)
    squares = 0.0
    for name, value in run.ema.items():
        value = value.astype('float64')
        if is_key_bias(name):
            third = len(value) // 3
            value = np.delete(value, slice(third, 2 * third))
        squares += (value ** 2).sum()
    assert abs(squares - expected['ema']['checksum']['sumsq']) < 2e-3
