"""The peer on the first updates of a recipe: curves_peer.py FOLDER

FOLDER holds what `python -m tests.support.golden_curves RECIPE FOLDER` writes: recipe, weights and
batches of this project. Model, mixing, targets, loss, parameter groups, optimizer, schedule and
averaged weights are the peer's own (see accuracy_peer.py); pictures, their order and the random
numbers are given. Prints {'loss': [...], 'grad_norm': [...], 'lr': [...], 'validation': {...}}.
"""

import contextlib
import json
import os
import sys
from unittest import mock

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..'))

from benchmarks import accuracy_peer as peer  # noqa: I001 (makes timm ready to be imported)

import numpy as np
import safetensors.torch
import timm
import torch


class Draws:
    """Random numbers of dropout and stochastic depth, from NumPy by the update's number.

    at_least: stochastic depth keeps what is drawn at or above its rate, and not below 1 - rate.
    """

    def __init__(self, at_least):
        self.at_least = at_least
        self.generator = None

    def draw(self, shape):
        return torch.from_numpy(self.generator.random(tuple(shape), dtype=np.float32))

    def drop(self, x, p=0.5, training=True, inplace=False):
        return x * (self.draw(x.shape) >= p) / (1 - p) if training and p else x

    def keep(self, tensor, probability):
        drawn = self.draw(tensor.shape)
        kept = drawn >= 1 - probability if self.at_least else drawn < probability
        return tensor.copy_(kept)


def mix(mixup, images, labels, lam, box):
    """Let timm's Mixup mix with a given lambda, or box (top, bottom, left, right)."""
    has_box = box[1] > box[0] and box[3] > box[2]
    with mock.patch.object(mixup, '_params_per_batch', lambda: (float(lam), has_box)), \
            mock.patch.object(timm.data.mixup, 'rand_bbox', lambda *_, **__: box.tolist()):
        return mixup(images, labels)


def train(recipe, model, batches):
    options = recipe['TRAIN']
    mixup, criterion = peer.build_mixup(recipe), peer.build_criterion(recipe)
    optimizer = peer.build_optimizer(recipe, model)
    schedule, _ = peer.build_schedule(recipe, optimizer, options['NUM_STEPS'])
    ema = timm.utils.ModelEmaV2(model, options['MODEL_EMA_DECAY']) if options['MODEL_EMA'] else None
    draws = Draws(at_least=recipe['MODEL']['TYPE'] != 'ViT')
    curves = {'loss': [], 'grad_norm': [], 'lr': []}
    model.train()
    with mock.patch('torch.nn.functional.dropout', draws.drop), \
            mock.patch('torch.Tensor.bernoulli_', lambda x, p: draws.keep(x, p)):
        for update, (images, labels) in enumerate(zip(batches['images'], batches['labels'])):
            draws.generator = np.random.default_rng([recipe['SEED'], update])
            images, labels = torch.from_numpy(images.copy()), torch.from_numpy(labels)
            if mixup is not None:
                images, labels = mix(mixup, images, labels, batches['lam'][update],
                                     batches['boxes'][update])
            curves['lr'].append(max(group['lr'] for group in optimizer.param_groups))
            loss = criterion(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), options['GRAD_CLIP'])
            optimizer.step()
            if ema is not None:
                ema.update(model)
            schedule.step_update(update + 1)
            curves['loss'].append(loss.item())
            curves['grad_norm'].append(norm.item())
    samples = [(torch.from_numpy(batches['val_images']), torch.from_numpy(batches['val_labels']))]
    curves['validation'] = {'model': peer.evaluate(model, samples)[0]}
    if ema is not None:
        curves['validation']['ema'] = peer.evaluate(ema.module, samples)[0]
    return curves


def main():
    folder, = sys.argv[1:]
    with open(os.path.join(folder, 'recipe.json'), encoding='utf-8') as file:
        recipe = json.load(file)
    with contextlib.redirect_stdout(sys.stderr):            # the official code says what it builds
        model = peer.build_model(recipe)
    model.load_state_dict(safetensors.torch.load_file(os.path.join(folder, 'weights.safetensors')))
    batches = dict(np.load(os.path.join(folder, 'batches.npz')))
    print(json.dumps(train(recipe, model, batches)))


if __name__ == '__main__':
    main()
