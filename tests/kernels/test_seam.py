"""Kernels are installed where they give the numbers of a layer's own function, and nowhere else."""

import logging

import numpy as np
import paddle
import pytest
from paddle import nn
from paddle.nn import functional as F

from common.kernels import fused, install, installed, separate
from common.kernels.seam import find_difference, make_gelu_example
from T2T_ViT.t2t_vit import T2TViT
from ViT import vit
from ViT.vit import VisionTransformer

MODELS = {
    'vit': (VisionTransformer, {}),
    'vit, no qkv bias, other head size': (VisionTransformer, {'qkv_bias': False,
                                                              'attn_head_size': 10}),
    'vit, rope, registers, scaled': (VisionTransformer, {
        'position_embedding': 'rope', 'register_tokens': 3, 'layer_scale': 0.5, 'pool': 'avg'}),
    'vit, attention pooling, quick': (VisionTransformer, {
        'pool': 'map', 'class_token': False, 'gelu': 'quick', 'pre_norm': True}),
    't2t': (T2TViT, {'qkv_bias': True}),
    't2t, transformer, other scale': (T2TViT, {'token_type': 'transformer', 'qk_scale': 0.3}),
}


def build(name):
    kind, options = MODELS[name]
    paddle.seed(1)
    model = kind(image_size=48, embed_dim=48, depth=2, num_heads=4, num_classes=10, **options)
    for parameter in model.parameters():        # biases are 0 when a model is new
        if parameter.ndim == 1:
            parameter.set_value(parameter + 0.1 * paddle.randn(parameter.shape))
    return model


def list_installed(model):
    return {path: sorted(set(getattr(type(layer), 'kernels', ())) & set(vars(layer)))
            for path, layer in model.named_sublayers()}


def run(model, images):
    model.eval()
    with paddle.no_grad():
        return model(images).numpy()


def compute_gradients(model, images):
    model.train()
    model(images).square().sum().backward()
    gradients = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()
                 if parameter.grad is not None}
    model.clear_gradients()
    return gradients


def assert_same_gradients(found, expected):
    """Equal to rounding; a gradient that is nothing but rounding is held against the largest."""
    largest = max(np.abs(gradient).max() for gradient in expected.values())
    assert set(found) == set(expected)
    for path, gradient in expected.items():
        np.testing.assert_allclose(found[path], gradient, rtol=0, err_msg=path, atol=1e-5 * max(
            np.abs(gradient).max(), 1e-3 * largest))


class NormedAttention(vit.Attention):
    """Attention with norms of queries and keys before the product (Dehghani et al., 2023)."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.q_norm, self.k_norm = nn.LayerNorm(self.head_size), nn.LayerNorm(self.head_size)

    def forward(self, tokens):
        q, k, v = self.project_heads(tokens, self.qkv, self.num_heads)
        heads = self.attention(self.q_norm(q), self.k_norm(k), v, self.scale, self.attn_dropout)
        return self.proj_dropout(self.out(heads))


class SharperAttention(vit.Attention):
    """An attention function that nobody here has thought of."""

    @staticmethod
    def attention(q, k, v, scale, dropout):
        return vit.attention(q, k, v, 2 * scale, dropout)


class ReluMlp(vit.Mlp):
    @staticmethod
    def gelu_linear(hidden, form, linear, dropout):
        return linear(dropout(F.relu(hidden)))


@pytest.mark.parametrize('name, replacement, is_kept_plain', [
    ('Attention', NormedAttention, None), ('Attention', SharperAttention, 'attention'),
    ('Mlp', ReluMlp, 'gelu_linear')])
def test_a_changed_layer_is_right_or_plain(monkeypatch, caplog, name, replacement, is_kept_plain):
    monkeypatch.setattr(vit, name, replacement)
    find_difference.cache_clear()
    model = build('vit')
    images = paddle.randn([2, 3, 48, 48])
    logits, gradients = run(model, images), compute_gradients(model, images)
    with caplog.at_level(logging.WARNING):
        install(model, 'cpu')
    np.testing.assert_allclose(run(model, images), logits, atol=1e-5 * np.abs(logits).max())
    np.testing.assert_allclose(model.forward_logits(images).numpy(), logits,
                               atol=1e-5 * np.abs(logits).max())
    assert_same_gradients(compute_gradients(model, images), gradients)
    found = {function for functions in list_installed(model).values() for function in functions}
    assert found == {'linear', 'layer_norm', 'gelu_linear', 'project_heads', 'attention'} - {
        is_kept_plain}
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == bool(is_kept_plain)
    assert all(is_kept_plain in line and 'is not used' in line for line in lines)


def test_a_function_with_other_arguments_stays_plain(caplog):
    def attention(q, k, v):
        return q

    find_difference.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert 'TypeError' in find_difference('attention', attention, 'cpu')
    assert 'Kernel attention (cpu) is not used: TypeError' in caplog.text


def test_installing_leaves_no_trace():
    """Random numbers, names of what is built later, weights and gradients are as without it."""
    model = build('vit')
    before = {name: value.numpy() for name, value in model.state_dict().items()}
    paddle.seed(5)
    expected = paddle.randn([3]).numpy()
    with paddle.utils.unique_name.guard():
        name = nn.Linear(2, 2).weight.name
    paddle.seed(5)
    find_difference.cache_clear()
    with paddle.utils.unique_name.guard():
        install(model, 'cpu')
        assert nn.Linear(2, 2).weight.name == name
    paddle.seed(5)
    find_difference.cache_clear()
    install(model, 'cpu')
    np.testing.assert_array_equal(paddle.randn([3]).numpy(), expected)
    assert all(parameter.grad is None for parameter in model.parameters())
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[name])


@pytest.mark.parametrize('kind', ['plain', 'cpu'])
@pytest.mark.parametrize('name', MODELS)
def test_separate_projections_give_the_logits_and_leave_nothing_behind(name, kind):
    model = build(name)
    install(model, kind)
    images = paddle.randn([2, 3, 48, 48])
    expected = run(model, images)
    before = list(model.state_dict()), list_installed(model)
    with installed(model, 'separate'):
        found = run(model, images)
        parts = model.blocks[0].attn.qkv.parts
        parts['v'].weight.set_value(parts['v'].weight * 50)         # it is what is used
        assert np.abs(run(model, images) - found).max() > 1e-4
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    assert (list(model.state_dict()), list_installed(model)) == before
    np.testing.assert_array_equal(run(model, images), expected)


def test_gelu_of_tanh_spelled_out_is_paddles():
    arguments, _ = make_gelu_example('tanh')('float32')
    plain = VisionTransformer(16, 8, embed_dim=16, depth=1, num_heads=2).blocks[0].mlp.gelu_linear
    found = separate.gelu_linear(plain, *arguments).numpy()
    np.testing.assert_allclose(found, plain(*arguments).numpy(), rtol=1e-5, atol=1e-6)
    arguments[1] = 'erf'                # whose GELU is the plain function's
    assert np.abs(separate.gelu_linear(plain, *arguments).numpy() - found).max() > 1e-5


@pytest.mark.parametrize('name', ['vit', 't2t, transformer, other scale'])
def test_fused_attention_is_the_plain_one(monkeypatch, name):
    """In float32, where the CPU takes the same mathematical path; half precision is a GPU's."""
    monkeypatch.setitem(fused.KERNELS, 'attention',
                        lambda plain, q, k, v, scale, dropout: fused.attend(q, k, v, scale, 0.0))
    find_difference.cache_clear()
    model = build(name)
    images = paddle.randn([2, 3, 48, 48])
    logits, gradients = run(model, images), compute_gradients(model, images)
    assert install(model, 'fused') == len(model.blocks)
    np.testing.assert_allclose(run(model, images), logits, atol=1e-5 * np.abs(logits).max())
    assert_same_gradients(compute_gradients(model, images), gradients)
    find_difference.cache_clear()


def test_fused_attention_leaves_float32_and_hooks_to_the_plain_one():
    calls = []

    def plain(q, k, v, scale, dropout):
        calls.append(q.dtype)
        return q

    q = paddle.randn([1, 2, 3, 4])
    fused.attention(plain, q, q, q, 0.5, nn.Dropout(0.1))
    watched = nn.Dropout(0.1)
    watched.register_forward_pre_hook(lambda layer, inputs: None)
    half = q.astype('float16')
    fused.attention(plain, half, half, half, 0.5, watched)
    assert calls == [paddle.float32, paddle.float16]
