"""Attention weights and rollout against NumPy, and the figure that shows them."""

import json

import numpy as np
import paddle
import pytest
from PIL import Image

from common.data.digits import load_digits_rgb
from common.deploy.attention import make_map, record_attention, roll_out
from T2T_ViT.t2t_vit import T2TViT
from T2T_ViT.token_attention import list_token_modules
from tests.recipe import fill_by_recipe, recipe_images
from ViT.vit import VisionTransformer

VIT = {'image_size': (32, 48), 'patch_size': 8, 'num_classes': 5, 'embed_dim': 24, 'depth': 3,
       'num_heads': 3}
T2T = {'image_size': (32, 48), 'num_classes': 5, 'embed_dim': 24, 'depth': 2, 'num_heads': 3,
       'token_dim': 8}


def images_of(model_options):
    height, width = model_options['image_size']
    return recipe_images(2, max(height, width))[:, :, :height, :width].copy()


def softmax(scores):
    exponents = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return exponents / exponents.sum(axis=-1, keepdims=True)


def run_and_capture(model, layers, images):
    """Return the outputs of `layers`, as float64, while the model runs on the images."""
    outputs = []
    hooks = [layer.register_forward_post_hook(
        lambda layer, inputs, output: outputs.append(output.numpy().astype('float64')))
        for layer in layers]
    with paddle.no_grad():
        logits = model(paddle.to_tensor(images)).numpy()
    for hook in hooks:
        hook.remove()
    return logits, outputs


def attend(qkv, num_heads, scale=None):
    """Return softmax(q k^T * scale) [B, H, T, T] of a projection q | k | v [B, T, 3 D]."""
    batch, tokens, width = qkv.shape
    head_dim = width // 3 // num_heads
    q, k, _ = qkv.reshape(batch, tokens, 3, num_heads, head_dim).transpose(2, 0, 3, 1, 4)
    return softmax(q @ k.transpose(0, 1, 3, 2) * (scale or head_dim ** -0.5))


def make_vit(**options):
    model = fill_by_recipe(VisionTransformer(**{**VIT, **options}))
    model.eval()
    return model


def make_t2t(**options):
    model = fill_by_recipe(T2TViT(**{**T2T, **options}), keep={'pos_embed'})
    model.eval()
    return model


@pytest.mark.parametrize('options', [
    {}, {'attn_head_size': 5}, {'class_token': False, 'pool': 'avg'}])
def test_vit_attention_equals_numpy(options):
    model, images = make_vit(**options), images_of(VIT)
    attention = record_attention(model, images)
    logits, projections = run_and_capture(model, [b.attn.qkv for b in model.blocks], images)
    expected = np.stack([attend(qkv, 3) for qkv in projections])
    np.testing.assert_allclose(attention.layers, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(attention.layers.sum(axis=-1), 1, atol=1e-5)
    np.testing.assert_array_equal(attention.logits, logits)
    has_class = options.get('class_token', True)
    assert (attention.prefix, attention.grid) == (int(has_class), (4, 6))
    assert attention.reader == ([0] if has_class else list(range(24)))


@pytest.mark.parametrize('qk_scale', [None, 0.3])
def test_t2t_attention_equals_numpy(qk_scale):
    model, images = make_t2t(qk_scale=qk_scale), images_of(T2T)
    attention = record_attention(model, images)
    _, projections = run_and_capture(model, [b.attn.qkv for b in model.blocks], images)
    expected = np.stack([attend(qkv, 3, qk_scale) for qkv in projections])
    np.testing.assert_allclose(attention.layers, expected, rtol=0, atol=1e-5)
    assert attention.layers.shape == (2, 2, 3, 7, 7)


def test_token_transformer_attention_equals_numpy():
    model, images = make_t2t(token_type='transformer'), images_of(T2T)
    attention = record_attention(model, images, list_token_modules(model))
    stem = model.patch_embed
    _, projections = run_and_capture(model, [stem.attn1.attn.qkv, stem.attn2.attn.qkv], images)
    # The official code scales by the width of the module's input: 7 * 7 * 3 and 3 * 3 * C.
    for (weights, grid), qkv, width, size in zip(
            attention.stem.values(), projections, (147, 72), ((8, 12), (4, 6))):
        expected = attend(qkv, 1, width ** -0.5)[:, 0]
        np.testing.assert_allclose(weights, expected, rtol=0, atol=1e-5)
        np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-5)
        assert grid == size


def test_performer_attention_is_the_one_that_its_output_has():
    model, images = make_t2t(), images_of(T2T)
    stem = model.patch_embed
    for module in (stem.attn1, stem.attn2):     # |x|^2 as in a trained model, for float32's sake
        module.kqv.weight.set_value(module.kqv.weight * 0.3)
    attention = record_attention(model, images, list_token_modules(model))
    _, projections = run_and_capture(model, [stem.attn1.kqv, stem.attn2.kqv], images)
    _, applied = run_and_capture_inputs(model, [stem.attn1.proj, stem.attn2.proj], images)
    for module, (weights, _), kqv, output in zip(
            (stem.attn1, stem.attn2), attention.stem.values(), projections, applied):
        k, q, v = np.split(kqv, 3, axis=-1)
        w = module.w.numpy().astype('float64')
        features = [np.exp(x @ w.T - (x ** 2).sum(-1, keepdims=True) / 2) / np.sqrt(len(w))
                    for x in (q, k)]
        expected = features[0] @ features[1].transpose(0, 2, 1)
        expected /= expected.sum(axis=-1, keepdims=True)
        np.testing.assert_allclose(weights, expected, rtol=0, atol=1e-5)
        np.testing.assert_allclose(weights @ v, output, rtol=0, atol=1e-4)


def run_and_capture_inputs(model, layers, images):
    inputs_seen = []
    hooks = [layer.register_forward_pre_hook(
        lambda layer, inputs: inputs_seen.append(inputs[0].numpy())) for layer in layers]
    with paddle.no_grad():
        logits = model(paddle.to_tensor(images)).numpy()
    for hook in hooks:
        hook.remove()
    return logits, inputs_seen


def test_recording_leaves_the_model_as_it_was():
    model, images = make_vit(attention_dropout=0.5), images_of(VIT)
    before, _ = run_and_capture(model, [], images)
    model.train()
    record_attention(model, images)
    assert model.training
    model.eval()
    seen = len(record_attention(model, images).layers)
    assert seen == VIT['depth']
    after, _ = run_and_capture(model, [], images)
    np.testing.assert_array_equal(before, after)
    assert not any(block.attn.attn_dropout._forward_pre_hooks for block in model.blocks)


def test_rollout_of_two_layers_by_hand():
    # One head, two tokens. (A + I) / 2: [[.75, .25], [.5, .5]] and [[.9, .1], [.2, .8]].
    layers = np.array([[[.5, .5], [1, 0]], [[.8, .2], [.4, .6]]])[:, None, None]
    first, second = roll_out(layers)[:, 0]
    np.testing.assert_allclose(first, [[.75, .25], [.5, .5]], atol=1e-7)
    np.testing.assert_allclose(second, [[.725, .275], [.55, .45]], atol=1e-7)


def test_rollout_averages_heads_and_its_rows_sum_to_one():
    generator = np.random.default_rng(0)
    layers = softmax(generator.standard_normal((3, 2, 4, 5, 5)) * 3)
    rolled = roll_out(layers)
    expected = np.eye(5)
    for layer in layers[:, 1]:
        expected = (layer.mean(axis=0) / 2 + np.eye(5) / 2) @ expected
    np.testing.assert_allclose(rolled[-1, 1], expected, atol=1e-6)
    np.testing.assert_allclose(rolled.sum(axis=-1), 1, atol=1e-6)


def test_map_leaves_out_the_class_token_and_goes_row_by_row():
    weights = np.arange(49.).reshape(1, 7, 7)
    np.testing.assert_array_equal(make_map(weights, [0], 1, (2, 3))[0], [[1, 2, 3], [4, 5, 6]])
    np.testing.assert_array_equal(
        make_map(weights[:, :6, :6], [0, 2], 0, (3, 2))[0], [[7, 8], [9, 10], [11, 12]])
