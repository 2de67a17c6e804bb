"""The recipes of Fashion-MNIST follow the peer's curves for their first 60 updates.

tests/fixtures/curves/*.json are of timm's ViT and of the official T2T-ViT, trained by timm's own
optimizer groups, schedule, mixing, losses and averaged weights, with the same start, pictures and
random numbers (benchmarks/curves_peer.py). Everything here is a run's own, see golden_curves.
"""

import json

import numpy as np
import pytest

from common.data.mixup import Mixup
from common.training import optimizer
from common.training.ema import ModelEma
from tests.support.golden_curves import RECIPES, follow
from tests.support.paths import FIXTURES

# The largest difference of a loss, and of a gradient's norm as a share. In layer decay timm counts
# the last norm to the last block; here, as in MAE, it belongs to the classifier.
LOSS, GRAD_NORM = 2e-5, 5e-4
WITH_LAYER_DECAY = 1e-4, 2e-3


def check(recipe, curves):
    loss, grad_norm = WITH_LAYER_DECAY if recipe == 'vit_fashion_mnist_augmented' else \
        (LOSS, GRAD_NORM)
    expected = json.loads((FIXTURES / 'curves' / f'{recipe}.json').read_text())
    np.testing.assert_allclose(curves['lr'], expected['lr'], rtol=1e-9)
    np.testing.assert_allclose(curves['loss'], expected['loss'], atol=loss, rtol=0)
    np.testing.assert_allclose(curves['grad_norm'], expected['grad_norm'], rtol=grad_norm)
    assert curves['validation'].keys() == expected['validation'].keys()
    for weights, value in expected['validation'].items():
        assert abs(curves['validation'][weights] - value) < loss, weights


@pytest.mark.runs
@pytest.mark.parametrize('recipe', RECIPES)
def test_a_recipe_follows_the_peer(recipe, tmp_path):
    check(recipe, follow(recipe, tmp_path))


def decay_norms(monkeypatch):
    group = optimizer.group_parameters
    monkeypatch.setattr(optimizer, 'group_parameters', lambda model, decay, *rest: [
        part | {'weight_decay': decay} for part in group(model, decay, *rest)])


def swap_labels(monkeypatch):
    mix = Mixup.mix

    def mix_swapped(self, images, labels, *drawn):
        targets = mix(self, images.clone(), labels.flip(0), *drawn)[1]
        return mix(self, images, labels, *drawn)[0], targets
    monkeypatch.setattr(Mixup, 'mix', mix_swapped)


def average_too_early(monkeypatch):
    update = ModelEma.update
    before = {}             # the weights before the optimizer's update

    def update_behind(self):
        parameters = self.parameters
        self.parameters = dict(before) or parameters
        update(self)
        self.parameters = parameters
        before.update({name: item.clone() for name, item in parameters.items()})
    monkeypatch.setattr(ModelEma, 'update', update_behind)


@pytest.mark.runs
@pytest.mark.parametrize('recipe, mistake, flags', [
    ('vit_fashion_mnist', decay_norms, {}),
    ('t2t_vit_fashion_mnist_augmented', swap_labels, {}),
    ('t2t_vit_fashion_mnist_augmented', average_too_early, {}),
    ('vit_fashion_mnist', None, {'TRAIN.BASE_LR': 1e-4})],
    ids=['norms decay', 'mixup labels swapped', 'average one update behind', 'a tenth of the rate'])
def test_a_mistake_is_noticed(recipe, mistake, flags, tmp_path, monkeypatch):
    if mistake is not None:
        mistake(monkeypatch)
    curves = follow(recipe, tmp_path, flags)
    with pytest.raises(AssertionError):
        check(recipe, curves)
