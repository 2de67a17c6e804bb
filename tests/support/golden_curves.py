"""The first updates of a Fashion-MNIST recipe, on weights and random numbers that a rule gives.

Everything but these is a run's own: the recipe's yaml file, data, augmentation, loop, optimizer,
schedule, averaged weights and validation. What the model draws (dropout, stochastic depth) comes
from NumPy, by the update's number, so that a peer can draw the same.

    python -m tests.support.golden_curves RECIPE FOLDER

writes what benchmarks/curves_peer.py needs to train the peer on the same: recipe.json,
weights.safetensors in the peer's names, batches.npz.
"""

import contextlib
import importlib
import json
import math
import sys
from pathlib import Path

import numpy as np
import paddle
import yaml
from paddle import nn

from common.config import dump_config
from common.data.batch import build_train_batch
from common.data.erasing import erase
from common.data.loader import build_loader
from common.data.sampler import TrainBatches
from common.run import training
from common.run.job import build_job
from common.tools.convert_weights import convert
from common.training.stopping import StopRequest
from tests.support.paths import FIXTURES
from tests.support.recipe import draw

# At T2T-ViT's own rate, 2e-3, the curves are chaotic: a last bit grows to 0.01 in 60 updates.
T2T_RATE = 5e-4
RECIPES = {             # name: (directory, target of convert_weights.py for the peer, peak rate)
    'vit_fashion_mnist': ('ViT', 'timm', 1e-3),
    'vit_fashion_mnist_augmented': ('ViT', 'timm', 1e-3),
    't2t_vit_fashion_mnist': ('T2T_ViT', 't2t', T2T_RATE),
    't2t_vit_fashion_mnist_augmented': ('T2T_ViT', 't2t', T2T_RATE),
}
UPDATES = 60
FLAGS = {'DATA.DATA_PATH': str(FIXTURES / 'fashion_mnist'), 'DATA.BATCH_SIZE': 32,
         'DATA.NUM_WORKERS': 0, 'TRAIN.NUM_STEPS': UPDATES, 'TRAIN.WARMUP_STEPS': 10,
         'REPORT_FREQ': 1, 'DEVICE': 'cpu', 'KEEP': 0}


def load(recipe, flags=None):
    """Return (project, config) of a recipe's short run. flags: {key: value} to change."""
    folder, _, rate = RECIPES[recipe]
    project = importlib.import_module(f'{folder}.project').PROJECT
    return project, project.get_config(
        f'{project.folder}/configs/{recipe}.yaml',
        FLAGS | {'TRAIN.BASE_LR': rate} | (flags or {}))


def start_weight(name, shape):
    """Return a weight as training from scratch has it, float32, by its name alone."""
    if len(shape) == 1:
        return np.full(shape, float(name.endswith('weight')), np.float32)
    scale = 0.7 if name.endswith('.w') else 0.02
    if len(shape) == 4:
        scale = math.prod(shape[1:]) ** -0.5
    return np.float32(scale) * draw(name, shape)


@paddle.no_grad()
def fill(model):
    """Give a model's trained and random parameters the weights of the rule; return it."""
    for name, tensor in model.named_parameters():
        if not tensor.stop_gradient or name.endswith('.w'):
            tensor.set_value(start_weight(name, tensor.shape))
    return model


@contextlib.contextmanager
def draws_by_numpy(model):
    """Let dropout and stochastic depth draw from NumPy, seeded by the update's number."""
    generators = []

    def draw_uniform(shape):
        return paddle.to_tensor(generators[-1].random(shape, dtype=np.float32))

    def start_update(seed, update):
        generators.append(np.random.default_rng([seed, update]))

    def drop(layer, x):
        if not (layer.training and layer.p):
            return x
        return x * ((draw_uniform(x.shape) >= layer.p).astype('float32') / (1 - layer.p))

    layers = [layer for layer in model.sublayers() if isinstance(layer, nn.Dropout) and layer.p]
    loop = importlib.import_module('common.training.loop')
    rand, seed_update = paddle.rand, loop.seed_update
    paddle.rand, loop.seed_update = draw_uniform, start_update
    for layer in layers:
        layer.forward = lambda x, layer=layer: drop(layer, x)
    try:
        yield
    finally:
        paddle.rand, loop.seed_update = rand, seed_update


def follow(recipe, folder, flags=None):
    """Train the short run in a folder; return its curves.

    {'loss': [...], 'grad_norm': [...], 'lr': [...], 'validation': {'model': loss, 'ema': loss}}
    """
    project, config = load(recipe, flags)
    job = build_job(project, config, 'cpu', str(folder), None)
    fill(job.model)
    with draws_by_numpy(job.model), StopRequest(()) as stop:
        training.run_training(job, stop)
    events = [json.loads(line) for line in
              (Path(folder) / 'metrics.jsonl').read_text('utf-8').splitlines()]
    steps = [event for event in events if event['event'] == 'train_step']
    curves = {key: [step[key] for step in steps] for key in ('loss', 'grad_norm', 'lr')}
    return curves | {'validation': {event['weights']: event['loss'] for event in events
                                    if event['event'] == 'eval'}}


def write_for_peer(recipe, folder):
    """Write what the peer trains on: see the module's docstring."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    project, config = load(recipe)
    (folder / 'recipe.json').write_text(json.dumps(yaml.safe_load(dump_config(config))), 'utf-8')
    model = fill(project.build_model(config))
    paddle.save(model.state_dict(), str(folder / 'weights.pdparams'))
    convert(project, folder / 'weights.pdparams', folder / 'weights.safetensors',
            target=RECIPES[recipe][1], overwrite=True)
    dataset = project.get_dataset(config, True)
    order = TrainBatches(len(dataset), config.DATA.BATCH_SIZE, config.SEED)
    prepare = build_train_batch(config, order.batches_per_epoch)
    arrays = {'images': [], 'labels': [], 'lam': [], 'boxes': []}
    for images, labels, _, *drawn in build_loader(dataset, order.slice(0, UPDATES), config, 0,
                                                  prepare.draw):
        images = prepare.preprocess(images)
        if prepare.erase is not None:
            images, drawn = erase(images, *drawn[:2]), drawn[2:]
        lam, boxes = (item.numpy()[0] for item in drawn) if drawn else (1.0, np.zeros(4, int))
        for key, value in zip(arrays, (images.numpy(), labels.numpy(), lam, boxes)):
            arrays[key].append(np.array(value))
    validation = project.get_dataset(config, False)
    samples = [validation[0, index] for index in range(len(validation))]
    arrays['val_images'] = prepare.preprocess(
        paddle.to_tensor(np.stack([sample[0] for sample in samples]))).numpy()
    arrays['val_labels'] = [sample[1] for sample in samples]
    np.savez(folder / 'batches.npz', **{key: np.array(value) for key, value in arrays.items()})


if __name__ == '__main__':
    write_for_peer(*sys.argv[1:])
