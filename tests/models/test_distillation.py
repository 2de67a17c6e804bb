"""DeiT's distillation against its equations, and a student that learns from a checkpoint."""

import json

import numpy as np
import paddle
import pytest

from common.kernels import install
from common.training.losses import build_criterion
from tests.support.paths import FIXTURES
from tests.support.recipe import fill_by_recipe, recipe_images
from ViT.config import get_config
from ViT.distillation import build_loss, hard_loss, soft_loss
from ViT.vit import VisionTransformer, build_vit

FLAGS = {'DATA.IMAGE_SIZE': 16, 'MODEL.PATCH_SIZE': 8, 'MODEL.EMBED_DIM': 16, 'MODEL.DEPTH': 1,
         'MODEL.NUM_HEADS': 2, 'MODEL.NUM_CLASSES': 5, 'DEVICE': 'cpu'}


def softmax(x):
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


@pytest.fixture
def logits():
    generator = np.random.default_rng(0)
    return 3 * generator.standard_normal((4, 5)), 3 * generator.standard_normal((4, 5))


def to_tensor(array):
    return paddle.to_tensor(array.astype('float32'))


def test_hard_loss(logits):
    student, teacher = logits
    expected = -np.log(softmax(student))[np.arange(4), teacher.argmax(axis=-1)].mean()
    assert hard_loss(*map(to_tensor, logits)).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize('temperature', [1.0, 3.0])
def test_soft_loss(logits, temperature):
    """The Kullback-Leibler divergence, from the teacher to the student."""
    student, teacher = (softmax(array / temperature) for array in logits)
    divergence = (teacher * np.log(teacher / student)).sum() / 20 * temperature ** 2
    assert soft_loss(*map(to_tensor, logits), temperature).item() == \
        pytest.approx(divergence, rel=1e-5)


def test_without_a_teacher_both_heads_learn_the_labels():
    config = get_config(flags={**FLAGS, 'MODEL.DISTILLED': True})
    criterion = build_criterion(config)
    model = build_vit(config)
    model.train()
    images, labels = paddle.randn([3, 3, 16, 16]), paddle.to_tensor([0, 1, 2])
    first, second = model(images)
    loss = build_loss(config, criterion)(model, images, labels)
    assert loss.item() == pytest.approx(
        (criterion(first, labels).item() + criterion(second, labels).item()) / 2, rel=1e-6)


@pytest.mark.parametrize('share', [0.0, 0.3, 1.0])
def test_the_teacher_s_share(monkeypatch, share):
    config = get_config(flags={**FLAGS, 'MODEL.DISTILLED': True, 'TRAIN.TEACHER': 'x',
                               'TRAIN.DISTILLATION_SHARE': share})
    wanted = paddle.to_tensor([[0., 9., 0., 0., 0.]] * 3)
    monkeypatch.setattr('ViT.distillation.load_teacher', lambda config: lambda images: wanted)
    criterion = build_criterion(config)
    model = build_vit(config)
    model.train()
    images, labels = paddle.randn([3, 3, 16, 16]), paddle.to_tensor([0, 1, 2])
    first, second = model(images)
    taught = criterion(second, paddle.to_tensor([1, 1, 1])).item()
    expected = (1 - share) * criterion(first, labels).item() + share * taught
    assert build_loss(config, criterion)(model, images, labels).item() == \
        pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize('kernels', ['plain', 'cpu'])
@pytest.mark.parametrize('kind', ['hard', 'soft'])
def test_ten_updates_are_timms(monkeypatch, kind, kernels):
    """The fixture is timm's distilled DeiT in PyTorch, trained with the loss of DeiT's code."""
    golden = json.loads((FIXTURES / 'distillation' / 'losses.json').read_text())
    config = get_config(flags={
        'DATA.IMAGE_SIZE': 32, 'MODEL.PATCH_SIZE': 8, 'MODEL.EMBED_DIM': 32, 'MODEL.DEPTH': 2,
        'MODEL.NUM_HEADS': 4, 'MODEL.NUM_CLASSES': 10, 'MODEL.DISTILLED': True,
        'TRAIN.TEACHER': 'x', 'TRAIN.DISTILLATION': kind, 'TRAIN.SMOOTHING': golden['smoothing'],
        'TRAIN.DISTILLATION_SHARE': golden['share'],
        'TRAIN.DISTILLATION_TEMPERATURE': golden['temperature']})
    teacher = fill_by_recipe(VisionTransformer(
        image_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4, num_classes=10), salt=1)
    teacher.eval()
    monkeypatch.setattr('ViT.distillation.load_teacher', lambda config: teacher)
    model = fill_by_recipe(build_vit(config))
    install(model, kernels)
    compute_loss = build_loss(config, build_criterion(config))
    optimizer = paddle.optimizer.AdamW(1e-3, parameters=model.parameters(), weight_decay=0.05)
    model.train()
    losses = []
    for update in range(len(golden['losses'][kind])):
        images = paddle.to_tensor(recipe_images(len(golden['labels']), 32, salt=update))
        loss = compute_loss(model, images, paddle.to_tensor(golden['labels']))
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        losses.append(loss.item())
    np.testing.assert_allclose(losses, golden['losses'][kind], rtol=1e-5)
