"""ViT/vit.py and ViT/config.py: numbers, names, initialisation, regularisation, errors."""

import json
import math
import os
import re
import subprocess
import sys

import numpy as np
import paddle
import pytest

from common.errors import UserError
from tests.support.paths import FIXTURES, ROOT
from tests.support.recipe import draw, fill_by_recipe, recipe_images
from ViT.config import get_config
from ViT.vit import DropPath, VisionTransformer, build_sincos_table, build_vit

VIT_FULL = os.path.join(FIXTURES, 'vit_full')
with open(os.path.join(VIT_FULL, 'index.json'), encoding='utf-8') as index_file:
    INDEX = json.load(index_file)['configs']
QUICK = ('vit_tiny_patch16_224', 'vit_tiny_patch16_384', 'vit_small_patch32_224',
         'vit_small_patch16_224', 'vit_base_patch32_224', 'vit_base_patch16_224')

TINY = {'image_size': 32, 'patch_size': 8, 'num_classes': 5, 'embed_dim': 32, 'depth': 3,
        'num_heads': 2}
VARIANTS = {
    'plain': {},
    'rectangular': {'image_size': (24, 40)},
    'head_size': {'attn_head_size': 12},
    'no_qkv_bias': {'qkv_bias': False},
    'pre_logits': {'representation_size': 24},
    'pre_logits_relu': {'representation_size': 24, 'pre_logits_activation': 'relu'},
    'tanh_gelu': {'gelu': 'tanh', 'layer_norm_eps': 1e-3},
    'avg': {'pool': 'avg'},
    'avg_no_class_token': {'pool': 'avg', 'class_token': False},
    'sincos2d': {'position_embedding': 'sincos2d'},
    'sincos2d_no_class_token': {'pool': 'avg', 'class_token': False,
                                'position_embedding': 'sincos2d', 'image_size': (24, 40)},
    'mlp_ratio': {'mlp_ratio': 2.5, 'in_channels': 1},
    'quick_gelu_pre_norm': {'gelu': 'quick', 'pre_norm': True},
    'layer_scale': {'layer_scale': 0.5},
    'registers': {'register_tokens': 3},
    'registers_avg': {'register_tokens': 3, 'class_token': False, 'pool': 'avg',
                      'norm_after_pooling': True},
    'distilled': {'distilled': True},
    'no_last_norm': {'last_norm': False, 'register_tokens': 2},
    'map': {'pool': 'map', 'class_token': False, 'gelu': 'tanh'},
    'map_of_patches': {'pool': 'map', 'register_tokens': 2, 'representation_size': 24},
    'rope': {'position_embedding': 'rope', 'register_tokens': 2, 'image_size': (24, 40),
             'layer_scale': 0.1},
}


def config_path(name):
    return os.path.join(ROOT, 'ViT', 'configs', f'{name}.yaml')


def build_tiny(**arguments):
    return VisionTransformer(**{**TINY, **arguments})


def tiny_images(model, batch_size=4):
    return paddle.to_tensor(draw('images', [batch_size, *model.input_shape]))


# The numbers

@pytest.mark.parametrize('name', [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in INDEX])
def test_logits_equal_timms(name):
    config = get_config(config_path(name))
    model = fill_by_recipe(build_vit(config))
    model.eval()
    with paddle.no_grad():
        logits = model(paddle.to_tensor(recipe_images(1, config.DATA.IMAGE_SIZE))).numpy()
    expected = np.load(os.path.join(VIT_FULL, 'golden.npz'))[name]
    assert np.abs(logits - expected).max() <= 2e-5 * np.abs(expected).max()


def test_hybrid_logits_equal_googles():
    model = VisionTransformer(image_size=64, patch_size=8, num_classes=7, embed_dim=48, depth=3,
                              num_heads=4, gelu='tanh', resnet_layers=(2, 1), resnet_width=32)
    fill_by_recipe(model).eval()
    images = paddle.to_tensor(recipe_images(3, 64))
    expected = np.load(os.path.join(VIT_FULL, 'hybrid_logits.npz'))['logits']
    for forward in (model, model.forward_logits):
        assert np.abs(forward(images).numpy() - expected).max() <= 2e-5 * np.abs(expected).max()


def reference_forward(weights, images, patch_size, num_heads, gelu='erf', layer_norm_eps=1e-6,
                      pool='token', pre_logits_activation='tanh'):
    """The paper's equations in float64 NumPy, one image and one head at a time."""
    weights = {name: value.astype('float64') for name, value in weights.items()}

    def norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + layer_norm_eps)
        return x * weights[f'{name}.weight'] + weights[f'{name}.bias']

    def linear(x, name):
        return x @ weights[f'{name}.weight'] + weights.get(f'{name}.bias', 0)

    def activate(x):
        if gelu == 'quick':
            return x / (1 + np.exp(-1.702 * x))
        if gelu == 'erf':
            return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2
        return x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3))) / 2

    all_logits = []
    for image in images.astype('float64'):
        _, height, width = image.shape
        tokens = [np.tensordot(weights['patch_embedding.patch_embedding.weight'],
                               image[:, top:top + patch_size, left:left + patch_size], 3)
                  + weights['patch_embedding.patch_embedding.bias']
                  for top in range(0, height, patch_size) for left in range(0, width, patch_size)]
        prefix = [token for name in ('cls_token', 'dist_token', 'register_tokens')
                  if name in weights for token in weights[name][0]]
        tokens = np.stack([*prefix, *tokens])
        if 'position_embedding' in weights:
            tokens = tokens + weights['position_embedding'][0]
        if 'pre_norm.weight' in weights:
            tokens = norm(tokens, 'pre_norm')
        rows, cols = ((2 * np.arange(0.5, count) / count - 1)
                      for count in (height // patch_size, width // patch_size))
        places = [(row, col) for row in rows for col in cols]
        depth = sum(name.endswith('attn.qkv.weight') for name in weights)
        for layer in (f'encoder.layers.{i}' for i in range(depth)):
            q, k, v = np.split(linear(norm(tokens, f'{layer}.attn_norm'), f'{layer}.attn.qkv'),
                               3, axis=-1)
            heads = []
            for query, key, value in zip(*(np.split(x, num_heads, axis=-1) for x in (q, k, v))):
                if 'position_embedding' not in weights:
                    query, key = (np.stack([*x[:len(prefix)], *map(turn, x[len(prefix):], places)])
                                  for x in (query, key))
                scores = np.exp(query @ key.T / math.sqrt(query.shape[-1]))
                heads.append(scores / scores.sum(-1, keepdims=True) @ value)
            tokens = tokens + weights.get(f'{layer}.gamma_1', 1) * linear(
                np.concatenate(heads, -1), f'{layer}.attn.out')
            hidden = activate(linear(norm(tokens, f'{layer}.mlp_norm'), f'{layer}.mlp.fc1'))
            tokens = tokens + weights.get(f'{layer}.gamma_2', 1) * linear(
                hidden, f'{layer}.mlp.fc2')
        if 'encoder.encoder_norm.weight' in weights:
            tokens = norm(tokens, 'encoder.encoder_norm')
        features = tokens[0] if pool == 'token' else tokens[len(prefix):].mean(0)
        if pool == 'map':
            query = linear(weights['attention_pool.latent'][0, 0], 'attention_pool.q')
            keys, values = np.split(linear(tokens[len(prefix):], 'attention_pool.kv'), 2, axis=-1)
            heads = []
            for head in np.split(np.arange(query.size), num_heads):
                scores = np.exp(keys[:, head] @ query[head] / math.sqrt(len(head)))
                heads.append(scores @ values[:, head] / scores.sum())
            found = linear(np.concatenate(heads), 'attention_pool.proj')
            hidden = activate(linear(norm(found, 'attention_pool.norm'), 'attention_pool.mlp.fc1'))
            features = found + linear(hidden, 'attention_pool.mlp.fc2')
        if 'fc_norm.weight' in weights:
            features = norm(features, 'fc_norm')
        if 'pre_logits.0.weight' in weights:
            features = linear(features, 'pre_logits.0')
            features = np.tanh(features) if pre_logits_activation == 'tanh' else features.clip(0)
        logits = linear(features, 'classifier')
        if 'classifier_dist.weight' in weights:
            logits = (logits + linear(tokens[1], 'classifier_dist')) / 2
        all_logits.append(logits)
    return np.stack(all_logits)


def turn(head, place):
    """Channels i and i + d / 2 of one head as a complex number, turned by the token's place."""
    half, quarter = len(head) // 2, len(head) // 4
    angles = [2 * math.pi * place[i // quarter] / 100 ** (4 * (i % quarter) / len(head))
              for i in range(half)]
    turned = (head[:half] + 1j * head[half:]) * np.exp(1j * np.array(angles))
    return np.concatenate([turned.real, turned.imag])


@pytest.mark.parametrize('variant', VARIANTS)
def test_every_variant_computes_the_papers_equations(variant):
    arguments = VARIANTS[variant]
    keep = ('position_embedding',) if 'sincos2d' in variant else ()
    model = fill_by_recipe(build_tiny(**arguments), keep=keep)
    model.eval()
    images = tiny_images(model)
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    numerics = ('gelu', 'layer_norm_eps', 'pool', 'pre_logits_activation')
    expected = reference_forward(
        weights, images.numpy(), TINY['patch_size'], TINY['num_heads'],
        **{name: value for name, value in arguments.items() if name in numerics})
    for forward in (model, model.forward_logits):
        np.testing.assert_allclose(forward(images).numpy(), expected, rtol=0,
                                   atol=5e-6 * np.abs(expected).max())


@pytest.mark.parametrize('variant, num_read', [
    ('plain', 1), ('pre_logits', 1), ('registers', 1), ('distilled', 2), ('rope', 1),
    ('avg', 17), ('map', 16)])
def test_the_last_block_computes_what_the_head_reads(variant, num_read):
    model = build_tiny(**VARIANTS[variant])
    model.eval()
    computed = []
    for block in model.blocks:
        block.mlp.fc1.register_forward_post_hook(
            lambda layer, inputs, output: computed.append(output.shape[1]))
    images = tiny_images(model)
    model.forward_logits(images)
    num_tokens = model.forward_features(images).shape[1]
    assert computed[:3] == [num_tokens, num_tokens, num_read]
    assert computed[3:] == [num_tokens] * 3


def test_features_are_what_the_head_reads():
    for variant in ('plain', 'avg', 'map', 'pre_logits', 'registers_avg'):
        model = fill_by_recipe(build_tiny(**VARIANTS[variant]))
        model.eval()
        images = tiny_images(model)
        features = model.forward_head(model.forward_features(images), pre_logits=True)
        np.testing.assert_allclose(model.classifier(features).numpy(), model(images).numpy(),
                                   rtol=1e-6, atol=1e-6)


def test_a_distilled_model_trains_both_heads():
    model = fill_by_recipe(build_tiny(distilled=True))
    images = tiny_images(model)
    model.train()
    both = model(images)
    model.eval()
    np.testing.assert_allclose(model(images).numpy(), (both[0] + both[1]).numpy() / 2, atol=1e-6)
    assert np.abs((both[0] - both[1]).numpy()).max() > 1e-3
    tokens = model.forward_features(images)
    np.testing.assert_allclose(model.forward_head(tokens, pre_logits=True).numpy(),
                               tokens[:, :2].numpy().mean(axis=1), atol=1e-6)


def test_set_numerics_equals_building_with_them():
    numerics = {'gelu': 'tanh', 'layer_norm_eps': 1e-3, 'pre_logits_activation': 'relu'}
    built = fill_by_recipe(build_tiny(representation_size=24, **numerics))
    changed = fill_by_recipe(build_tiny(representation_size=24))
    built.eval()
    changed.eval()
    images = tiny_images(built)
    wanted = built(images).numpy()
    seen = [changed(images).numpy()]
    for name, value in numerics.items():
        changed.set_numerics(**{name: value})
        seen.append(changed(images).numpy())
        assert np.abs(seen[-1] - seen[-2]).max() > 1e-5, f'{name} changed nothing'
    np.testing.assert_array_equal(seen[-1], wanted)
    assert list(changed.state_dict()) == list(built.state_dict())


def test_attention_probabilities_can_be_read_by_a_hook():
    model = build_tiny(attn_head_size=12)
    model.eval()
    seen = []
    model.blocks[1].attn.attn_dropout.register_forward_pre_hook(
        lambda layer, inputs: seen.append(inputs[0]))
    model(tiny_images(model))
    assert list(seen[0].shape) == [4, 2, 17, 17]
    np.testing.assert_allclose(seen[0].sum(-1).numpy(), 1, atol=1e-6)


# Names

def test_parameter_names_and_shapes_are_paddlevits():
    model = VisionTransformer(representation_size=96, num_classes=10, embed_dim=48, depth=2,
                              num_heads=4)
    expected = {
        'cls_token': [1, 1, 48], 'position_embedding': [1, 197, 48],
        'patch_embedding.patch_embedding.weight': [48, 3, 16, 16],
        'patch_embedding.patch_embedding.bias': [48],
        'encoder.encoder_norm.weight': [48], 'encoder.encoder_norm.bias': [48],
        'pre_logits.0.weight': [48, 96], 'pre_logits.0.bias': [96],
        'classifier.weight': [96, 10], 'classifier.bias': [10],
    }
    for i in range(2):
        layer = f'encoder.layers.{i}'
        expected |= {f'{layer}.{norm}.{part}': [48] for norm in ('attn_norm', 'mlp_norm')
                     for part in ('weight', 'bias')}
        for name, shape in (('attn.qkv', [48, 144]), ('attn.out', [48, 48]),
                            ('mlp.fc1', [48, 192]), ('mlp.fc2', [192, 48])):
            expected |= {f'{layer}.{name}.weight': shape, f'{layer}.{name}.bias': shape[1:]}
    assert {name: list(value.shape) for name, value in model.state_dict().items()} == expected


def test_default_arguments_are_paddlevits():
    model = VisionTransformer(depth=1)
    assert sum(int(value.size) for value in model.parameters()) == 86567656 - 11 * 7087872
    assert model.input_shape == [3, 224, 224]
    assert model.grid_size == (14, 14)
    assert model.num_prefix_tokens == 1
    assert model.blocks[0].attn.num_heads == 12
    assert model.blocks[0].attn_norm._epsilon == 1e-6


def test_grid_and_prefix_of_a_rectangle_without_class_token():
    model = build_tiny(image_size=(24, 40), pool='avg', class_token=False)
    assert model.grid_size == (3, 5)
    assert model.num_prefix_tokens == 0
    assert 'cls_token' not in model.state_dict()
    assert list(model.position_embedding.shape) == [1, 15, 32]
    assert model.no_weight_decay() == {'position_embedding'}
    assert build_tiny().no_weight_decay() == {'cls_token', 'position_embedding'}


# Initialisation

def test_initial_values():
    paddle.seed(1)
    model = VisionTransformer(image_size=64, patch_size=8, embed_dim=256, depth=2, num_heads=4,
                              representation_size=256)
    fan_in = 3 * 8 * 8
    for name, value in model.state_dict().items():
        value = value.numpy()
        if name == 'cls_token' or name.endswith('.bias'):
            assert not value.any(), name
        elif 'norm' in name:
            assert (value == 1).all(), name
        else:
            wanted = fan_in ** -0.5 if name.startswith('patch_embedding') else 0.02
            # The sample deviation of n draws has the relative error 1 / sqrt(2 n).
            error = 5 / math.sqrt(2 * value.size)
            assert abs(value.std() / wanted - 1) < error, (name, value.std())
            assert abs(value.mean()) < 5 * wanted / math.sqrt(value.size), name


def test_zero_head_starts_with_equal_logits():
    model = build_tiny(zero_head=True)
    images = tiny_images(model)
    assert not model(images).numpy().any()
    assert build_tiny()(images).numpy().any()


def test_hybrid_units_start_as_the_identity():
    model = build_tiny(resnet_layers=(1, 1), resnet_width=32)
    for name, value in model.named_parameters():
        if 'gn' in name and name.endswith('weight'):
            assert (value.numpy() == (0 if 'gn3' in name else 1)).all(), name


@pytest.mark.parametrize('arguments', [
    *VARIANTS.values(), {'zero_head': True}, {'dropout': 0.1, 'attention_dropout': 0.1},
    {'droppath': 0.1}, {'recompute': True}, {'resnet_layers': (1, 1), 'resnet_width': 32},
], ids=[*VARIANTS, 'zero_head', 'dropout', 'droppath', 'recompute', 'hybrid'])
def test_every_parameter_has_a_gradient_by_the_second_update(arguments):
    paddle.seed(2)
    check_gradients_reach_everything(build_tiny(**arguments))


@pytest.mark.slow
def test_every_parameter_of_vit_base_has_a_gradient_by_the_second_update():
    check_gradients_reach_everything(build_vit(get_config(config_path('vit_base_patch16_224'))))


def check_gradients_reach_everything(model):
    model.train()
    images, labels = tiny_images(model), paddle.to_tensor([0, 1, 2, 3])
    optimizer = paddle.optimizer.SGD(0.1, parameters=model.parameters())
    for _ in range(2):
        optimizer.clear_grad()
        outputs = model(images)
        for logits in outputs if isinstance(outputs, tuple) else [outputs]:
            paddle.nn.functional.cross_entropy(logits, labels).backward(retain_graph=True)
        optimizer.step()
    without = [name for name, value in model.named_parameters()
               if value.grad is None or not value.grad.numpy().any()]
    assert without == []


# Fixed position embedding

def test_sincos_table_is_big_visions():
    rows, cols, dim = 3, 5, 32
    table = build_sincos_table((rows, cols), dim, num_prefix_positions=1)
    assert table.shape == (1, 1 + rows * cols, dim)
    assert not table[0, 0].any()
    quarter = dim // 4
    for row in range(rows):
        for col in range(cols):
            for i in range(quarter):
                omega = 1 / 10000 ** (i / (quarter - 1))
                got = table[0, 1 + row * cols + col]
                expected = [math.sin(col * omega), math.cos(col * omega),
                            math.sin(row * omega), math.cos(row * omega)]
                np.testing.assert_allclose(got[i::quarter], expected, atol=1e-6)


def test_sincos_table_is_saved_but_not_trained():
    model = build_tiny(position_embedding='sincos2d')
    assert 'position_embedding' in model.state_dict()
    assert 'position_embedding' not in dict(model.named_parameters())
    assert model.position_embedding.stop_gradient
    other = {'position_embedding': paddle.ones([1, 17, 32])}
    model.set_state_dict({**model.state_dict(), **other})
    assert (model.position_embedding.numpy() == 1).all()


# Regularisation

def test_drop_path_drops_whole_samples_and_keeps_the_expectation():
    paddle.seed(3)
    layer = DropPath(0.3)
    layer.train()
    branch = layer(paddle.ones([20000, 2, 3])).numpy()
    assert (branch == branch[:, :1, :1]).all()
    kept = branch[:, 0, 0] != 0
    np.testing.assert_allclose(branch[kept], 1 / 0.7, rtol=1e-6)
    assert abs(kept.mean() - 0.7) < 5 * math.sqrt(0.7 * 0.3 / 20000)
    layer.eval()
    assert (layer(paddle.ones([8, 2])).numpy() == 1).all()


def test_stochastic_depth_grows_linearly_and_acts_on_both_branches():
    paddle.seed(4)
    model = build_tiny(droppath=0.4, depth=5)
    assert [block.drop_path.rate for block in model.blocks] == pytest.approx(
        [0, 0.1, 0.2, 0.3, 0.4])
    block = model.blocks[4]
    for branch in (block.attn, block.mlp):
        branch.register_forward_post_hook(
            lambda layer, inputs, output, size=1 if branch is block.attn else 10:
            paddle.full_like(output, size))
    block.train()
    added = block(paddle.zeros([4000, 1, 32])).numpy()[:, 0, 0]
    shares = {value: np.isclose(added, value / 0.6).mean() for value in (0, 1, 10, 11)}
    wanted = {0: 0.16, 1: 0.24, 10: 0.24, 11: 0.36}
    assert shares == pytest.approx(wanted, abs=0.04)


def test_training_passes_differ_only_with_regularisation():
    for arguments in ({'droppath': 0.5}, {'dropout': 0.1}, {'attention_dropout': 0.1}):
        model = build_tiny(**arguments)
        images = tiny_images(model)
        model.train()
        assert np.abs(model(images).numpy() - model(images).numpy()).max() > 0, arguments
        model.eval()
        np.testing.assert_array_equal(model(images).numpy(), model(images).numpy())


def test_dropout_is_where_the_paper_has_it():
    paddle.seed(5)
    model = build_tiny(dropout=0.25, attention_dropout=0.5, embed_dim=64)
    zeros = {}

    def record(name):
        def hook(layer, inputs, output):
            zeros.setdefault(name, []).append(
                ((output == 0) & (inputs[0] != 0)).astype('float32').mean().item())
        return hook

    for name, layer in model.named_sublayers():
        if isinstance(layer, paddle.nn.Dropout):
            layer.register_forward_post_hook(record(name))
    model.train()
    model(tiny_images(model))
    rates = {'pos_dropout': [0.25]}
    for i in range(3):
        rates |= {f'encoder.layers.{i}.attn.attn_dropout': [0.5],
                  f'encoder.layers.{i}.attn.proj_dropout': [0.25],
                  f'encoder.layers.{i}.mlp.dropout': [0.25, 0.25]}
    assert zeros.keys() == rates.keys()
    for name, wanted in rates.items():
        assert zeros[name] == pytest.approx(wanted, abs=0.05), name


# Recomputation

def train_once(model, images):
    paddle.seed(6)
    calls = []
    model.blocks[1].register_forward_pre_hook(lambda layer, inputs: calls.append(layer))
    model.train()
    loss = model(images).square().sum()
    loss.backward()
    gradients = {name: value.grad.numpy() for name, value in model.named_parameters()
                 if value.grad is not None}
    return loss.item(), gradients, len(calls)


@pytest.mark.parametrize('frozen', [False, True], ids=['all', 'first_block_frozen'])
def test_recomputation_changes_no_gradient(frozen):
    regularisation = {'dropout': 0.1, 'attention_dropout': 0.1, 'droppath': 0.3}
    results = []
    for recompute in (False, True):
        model = fill_by_recipe(build_tiny(recompute=recompute, **regularisation))
        if frozen:
            for name, value in model.named_parameters():
                if not name.startswith(('encoder.layers.1', 'encoder.layers.2', 'encoder.enc',
                                        'classifier')):
                    value.stop_gradient = True
        results.append(train_once(model, tiny_images(model)))
    (loss, gradients, calls), (loss_again, gradients_again, calls_again) = results
    assert loss_again == loss
    assert (calls, calls_again) == (1, 1 if frozen else 2)
    assert gradients.keys() == gradients_again.keys()
    for name, gradient in gradients.items():
        assert np.abs(gradients_again[name] - gradient).max() <= 1e-6 * np.abs(gradient).max()
        assert gradient.any(), name


# Errors

@pytest.mark.parametrize('arguments, text', [
    ({'image_size': 36}, 'image_size 36 is not a multiple of patch_size 8; use 32 or 40'),
    ({'image_size': (32, 4)}, 'image_size 4 is not'),
    ({'num_heads': 5}, 'embed_dim 32 is not a multiple of num_heads 5'),
    ({'num_heads': 5, 'attn_head_size': 8, 'pool': 'map'}, 'without pool map'),
    ({'gelu': 'relu'}, "gelu must be one of erf, tanh, quick, not 'relu'"),
    ({'pool': 'max'}, "pool must be one of token, avg, map, not 'max'"),
    ({'class_token': False}, 'pool token needs class_token True'),
    ({'position_embedding': 'none'}, 'position_embedding must be one of'),
    ({'pre_logits_activation': 'gelu'}, 'pre_logits_activation must be one of tanh, relu'),
    ({'position_embedding': 'sincos2d', 'embed_dim': 30}, 'multiple of 4, not 30'),
    ({'resnet_layers': (1, 1, 1)}, 'reduce images by 16, of which patch_size 8'),
    ({'resnet_layers': (1,), 'resnet_width': 40}, 'resnet_width 40 is not a multiple of 32'),
    ({'mlp_ratio': 0.01}, 'mlp_ratio 0.01 leaves the MLP no width'),
    ({'distilled': True, 'pool': 'avg'}, 'distilled True has a head'),
    ({'position_embedding': 'rope', 'attn_head_size': 6}, 'multiple of 4, not 6'),
])
def test_arguments_that_do_not_fit_are_refused(arguments, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        build_tiny(**arguments)


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r'takes images \[B, 3, 32, 32\], not \[2, 3, 32, 40\]'):
        build_tiny()(paddle.zeros([2, 3, 32, 40]))


@pytest.mark.parametrize('opts, text', [
    (['DATA.IMAGE_SIZE', '225'], 'IMAGE_SIZE 225 is not a multiple .* 16; use 224 or 240'),
    (['DATA.IMAGE_SIZE', '8'], 'use 16'),
    (['MODEL.NUM_HEADS', '7'], 'MODEL.EMBED_DIM 768 is not a multiple of MODEL.NUM_HEADS 7'),
    (['MODEL.POOL', 'avgg'], 'MODEL.POOL: unknown value .* Did you mean avg'),
    (['MODEL.GELU', 'exact'], 'MODEL.GELU: unknown value'),
    (['MODEL.CLASS_TOKEN', 'False'], 'MODEL.POOL token needs MODEL.CLASS_TOKEN True'),
    (['MODEL.HYBRID', '[3,4,6,3]'], 'reduce images by 32, of which MODEL.PATCH_SIZE 16'),
    (['MODEL.HYBRID', '[3,0]'], 'must be from 1 to 1000'),
    (['MODEL.DEPTH', '0'], 'MODEL.DEPTH must be above 0'),
    (['MODEL.REPRESENTATION_SIZE', 'wide'], 'MODEL.REPRESENTATION_SIZE must be an integer'),
    (['MODEL.POSITION_EMBEDDING', 'sincos2d', 'MODEL.EMBED_DIM', '90', 'MODEL.NUM_HEADS', '9'],
     'multiple of 4, not 90'),
    (['MODEL.TRANS.DEPTH', '12'], 'Did you mean MODEL.DEPTH'),
])
def test_config_mistakes_are_refused(opts, text):
    with pytest.raises(UserError, match=text):
        get_config(opts=opts)


# The config files and the way in

def test_config_reaches_every_argument():
    model = build_vit(get_config(config_path('vit_digits'), opts=[
        'MODEL.POOL', 'avg', 'MODEL.CLASS_TOKEN', 'False', 'MODEL.POSITION_EMBEDDING', 'sincos2d',
        'MODEL.ZERO_HEAD', 'True', 'MODEL.RECOMPUTE', 'True', 'MODEL.GELU', 'tanh',
        'MODEL.LAYER_NORM_EPS', '1e-5', 'MODEL.REPRESENTATION_SIZE', '96',
        'MODEL.PRE_LOGITS_ACTIVATION', 'relu', 'MODEL.ATTN_HEAD_SIZE', '24', 'MODEL.DROPOUT', '0.1',
        'MODEL.ATTENTION_DROPOUT', '0.2', 'MODEL.DROPPATH', '0.3', 'MODEL.QKV_BIAS', 'False',
        'MODEL.MLP_RATIO', '2.0', 'DATA.IMAGE_CHANNELS', '1', 'DATA.IMAGENET_MEAN', '[0.5]',
        'DATA.IMAGENET_STD', '[0.5]', 'MODEL.HYBRID', '[1, 1]', 'DATA.IMAGE_SIZE', '40']))
    block = model.blocks[3]
    assert model.pool == 'avg' and model.num_prefix_tokens == 0
    assert model.position_embedding.stop_gradient
    assert not model.classifier.weight.numpy().any() and model.encoder.recompute
    assert block.mlp.gelu == 'tanh' and block.mlp_norm._epsilon == 1e-5
    assert list(model.pre_logits[0].weight.shape) == [64, 96]
    assert isinstance(model.pre_logits[1], paddle.nn.ReLU)
    assert block.attn.head_size == 24 and block.attn.qkv.bias is None
    assert (block.attn.proj_dropout.p, block.attn.attn_dropout.p) == (0.1, 0.2)
    assert block.drop_path.rate == 0.3 and model.input_shape == [1, 40, 40]
    assert list(block.mlp.fc1.weight.shape) == [64, 128]
    assert list(model.resnet.conv_root.weight.shape) == [64, 1, 7, 7]


@pytest.mark.runs
def test_the_documented_snippet_runs_in_the_model_directory(tmp_path):
    code = (
        "from config import get_config\n"
        "from vit import build_vit as build_model\n"
        "import os, paddle; assert os.environ['OMP_NUM_THREADS']\n"
        "model = build_model(get_config('./configs/vit_digits.yaml'))\n"
        f"paddle.save(model.state_dict(), r'{tmp_path}/m.pdparams')\n"
        f"model.set_dict(paddle.load(r'{tmp_path}/m.pdparams'))\n"
        "print(list(model(paddle.zeros([2, 3, 32, 32])).shape))\n")
    run = subprocess.run([sys.executable, '-c', code], cwd=os.path.join(ROOT, 'ViT'),
                         capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip().endswith('[2, 10]')
