"""T2T-ViT: logits of the official code, counts, fixed tensors, precision, initialisation."""

import importlib
import json
import math

import numpy as np
import paddle
import pytest
from paddle import nn

from common.errors import UserError
from common.option import list_options
from common.tools.model_info import measure_config
from T2T_ViT.config import Options, get_config
from T2T_ViT.t2t_vit import (
    DropPath,
    T2TViT,
    TokenPerformer,
    TokenTransformer,
    as_image,
    build_t2t_vit,
    sinusoid,
    soft_split,
)
from tests.support.paths import FIXTURES, ROOT
from tests.support.recipe_t2t import fill_t2t

REFERENCE = FIXTURES / 't2t'
MODELS = json.loads((REFERENCE / 'models.json').read_text())
CONFIGS = ROOT / 'T2T_ViT' / 'configs'

# PaddleViT's table: parameters (without class token, position embedding and projection) and FLOPs.
PADDLEVIT_TABLE = {
    't2t_vit_7': ('4.3M', 1.0e9), 't2t_vit_10': ('5.8M', 1.3e9), 't2t_vit_12': ('6.9M', 1.5e9),
    't2t_vit_14': ('21.5M', 4.4e9), 't2t_vit_19': ('39.1M', 7.8e9), 't2t_vit_24': ('64.0M', 12.8e9),
    't2t_vit_t_14': ('21.5M', 4.4e9), 't2t_vit_t_19': ('39.1M', 7.9e9),
    't2t_vit_t_24': ('64.0M', 12.9e9), 't2t_vit_14_384': ('21.5M', 13.0e9),
}


def build_tiny(token_type='performer', **changes):
    arguments = {'image_size': 64, 'num_classes': 7, 'token_type': token_type, 'embed_dim': 64,
                 'depth': 2, 'num_heads': 2, 'mlp_ratio': 2.0, 'qkv_bias': False}
    return T2TViT(**{**arguments, **changes})


def draw_images(*shape, seed=0):
    return paddle.to_tensor(np.random.default_rng(seed).standard_normal(shape).astype('float32'))


def count(parameters):
    return sum(math.prod(parameter.shape) for parameter in parameters)


# Against the official code


@pytest.mark.parametrize('name', [
    name if facts['depth'] < 19 else pytest.param(name, marks=pytest.mark.slow)
    for name, facts in MODELS.items()])
def test_logits(name):
    facts = MODELS[name]
    model = fill_t2t(build_t2t_vit(get_config(CONFIGS / f'{name}.yaml')))
    model.eval()
    weights = [tensor.numpy().astype('float64') for tensor in model.state_dict().values()]
    assert sum(w.sum() for w in weights) == pytest.approx(facts['weights_sum'], rel=1e-10)
    assert sum((w ** 2).sum() for w in weights) == pytest.approx(facts['weights_sumsq'], rel=1e-10)
    generator = np.random.Generator(np.random.PCG64(20261120))
    size = facts['image_size']
    images = generator.standard_normal((1, 3, size, size)).astype('float32')
    with paddle.no_grad():
        logits = model(paddle.to_tensor(images)).numpy()[0]
    expected = np.load(REFERENCE / 'logits.npz')[name]
    assert np.abs(logits - expected).max() <= 2e-5 * np.abs(expected).max()


@pytest.mark.parametrize('name', MODELS)
def test_parameters_and_macs(name):
    """The official counts exactly; PaddleViT's table exactly (#Params) and within 5 % (FLOPs)."""
    facts = MODELS[name]
    info = measure_config(get_config, build_t2t_vit, CONFIGS / f'{name}.yaml')
    assert (info.name, info.image_size) == (name, facts['image_size'])
    assert info.params == facts['params_total']
    assert info.layer_params == facts['params_trainable'] - facts['embed_dim']  # class token
    assert info.macs == facts['macs_linear_only']
    matmuls = facts['macs_attention_blocks_matmul'] + facts['macs_token_module_matmul']
    assert info.macs_with_attention == facts['macs_linear_only'] + matmuls
    params, flops = PADDLEVIT_TABLE[name]
    assert f'{info.layer_params / 1e6:.1f}M' == params
    assert info.macs == pytest.approx(flops, rel=0.05)


@pytest.mark.parametrize('token_type', ['performer', 'transformer'])
def test_tiny_model(token_type):
    model = fill_t2t(build_tiny(token_type))
    model.eval()
    images = np.random.Generator(np.random.PCG64(20261121)).standard_normal((3, 3, 64, 64))
    images = paddle.to_tensor((np.round(8 * images) / 8).astype('float32'))
    expected = np.load(REFERENCE / 'logits.npz')[f'tiny_{token_type}']
    computed = []
    model.blocks[-1].mlp.register_forward_post_hook(
        lambda layer, inputs, output: computed.append(output.shape))
    for forward in (model, model.forward_logits):
        assert np.abs(forward(images).numpy() - expected).max() <= 5e-6
    assert computed == [[3, 17, 64], [3, 1, 64]]        # what the head reads


@pytest.mark.parametrize('token_type', ['performer', 'transformer'])
def test_state_dict_has_paddlevit_names(token_type):
    module = {
        'performer': {'w', 'kqv.weight', 'kqv.bias', 'proj.weight', 'proj.bias', 'mlp.0.weight',
                      'mlp.0.bias', 'mlp.2.weight', 'mlp.2.bias'},
        'transformer': {'attn.qkv.weight', 'attn.proj.weight', 'attn.proj.bias', 'mlp.fc1.weight',
                        'mlp.fc1.bias', 'mlp.fc2.weight', 'mlp.fc2.bias'},
    }[token_type] | {f'norm{i}.{kind}' for i in (1, 2) for kind in ('weight', 'bias')}
    block = {f'{layer}.{kind}' for layer in ('norm1', 'norm2', 'attn.proj', 'mlp.fc1', 'mlp.fc2')
             for kind in ('weight', 'bias')} | {'attn.qkv.weight'}
    expected = {'cls_token', 'pos_embed', 'patch_embed.proj.weight', 'patch_embed.proj.bias',
                'norm.weight', 'norm.bias', 'head.weight', 'head.bias'}
    expected |= {f'patch_embed.attn{i}.{name}' for i in (1, 2) for name in module}
    expected |= {f'blocks.{i}.{name}' for i in (0, 1) for name in block}
    assert set(build_tiny(token_type).state_dict()) == expected


# Inputs of any shape


def test_soft_split_equals_windows_cut_by_hand():
    """On a grid that is not square: channel first, then row and column in the window."""
    images = np.random.default_rng(0).standard_normal((2, 3, 16, 32)).astype('float32')
    for kernel, stride, padding in ((7, 4, 2), (3, 2, 1)):
        padded = np.pad(images, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
        windows = [padded[:, :, y:y + kernel, x:x + kernel].reshape(2, -1)
                   for y in range(0, padded.shape[2] - kernel + 1, stride)
                   for x in range(0, padded.shape[3] - kernel + 1, stride)]
        split = soft_split(paddle.to_tensor(images), kernel, stride, padding).numpy()
        assert split.shape[1] == (16 // stride) * (32 // stride)
        np.testing.assert_array_equal(split, np.stack(windows, axis=1))


def test_as_image_puts_rows_after_rows():
    tokens = paddle.arange(2 * 6 * 5).reshape([2, 6, 5]).astype('float32')
    image = as_image(tokens, (2, 3)).numpy()
    assert image.shape == (2, 5, 2, 3)
    np.testing.assert_array_equal(image[1, 4, 1, 2], tokens.numpy()[1, 5, 4])
    np.testing.assert_array_equal(image[0, 3, 0, 1], tokens.numpy()[0, 1, 3])


@pytest.mark.parametrize('token_type', ['performer', 'transformer'])
def test_image_need_not_be_square(token_type):
    model = build_tiny(token_type, image_size=(32, 64))
    model.eval()
    assert model.grid_size == (2, 4)
    assert model.pos_embed.shape == [1, 9, 64]
    # 128 and 32 tokens in the modules, 9 in the two blocks.
    in_modules = {'performer': (128 + 32) * (4 * 64 * 32 + 32),
                  'transformer': 2 * (128 ** 2 + 32 ** 2) * 64}[token_type]
    assert model.attention_macs() == in_modules + 2 * 2 * 9 ** 2 * 64
    images = draw_images(2, 3, 32, 64)
    assert model.forward_features(images).shape == [2, 9, 64]
    logits = model(images).numpy()
    assert np.isfinite(logits).all()
    # Pixels to the right of the middle must matter as those on the left do.
    for columns in (slice(0, 8), slice(56, 64)):
        changed = images.clone()
        changed[:, :, :, columns] = 0.0
        assert np.abs(model(changed).numpy() - logits).max() > 1e-6


@pytest.mark.parametrize('changes, words', [
    ({'image_size': 100}, 'image_size 100 is not a multiple of 16; use 96 or 112'),
    ({'image_size': (64, 40)}, 'image_size 40 .* use 32 or 48'),
    ({'image_size': 0}, 'image_size 0'),
    ({'token_type': 'convolution'}, "performer, transformer, not 'convolution'"),
    ({'num_heads': 3}, 'embed_dim 64 is not a multiple of num_heads 3'),
    ({'token_dim': 1}, 'token_dim must be 2 or more'),
    ({'mlp_ratio': 0.01}, 'mlp_ratio 0.01 leaves the MLP no width'),
    ({'gelu': 'relu'}, 'gelu must be'),
])
def test_what_cannot_be_built_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        build_tiny(**changes)


def test_images_of_another_size_are_refused():
    model = build_tiny()
    for shape in ((1, 3, 32, 32), (1, 1, 64, 64), (1, 3, 64, 80)):
        with pytest.raises(ValueError, match=r'\[B, 3, 64, 64\], not \[1, '):
            model(paddle.zeros(shape))


# Fixed tensors and training


FIXED = {'pos_embed', 'patch_embed.attn1.w', 'patch_embed.attn2.w'}


def test_fixed_tensors_do_not_change_in_training():
    """Given to AdamW with everything else, decay included, they stay bit for bit as they are."""
    paddle.seed(1)
    model = build_tiny()
    before = {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}
    optimizer = paddle.optimizer.AdamW(1e-2, parameters=model.parameters(), weight_decay=0.5)
    for _ in range(2):
        model(draw_images(2, 3, 64, 64)).square().mean().backward()
        optimizer.step()
        optimizer.clear_grad()
    after = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    unchanged = {name for name in before if np.array_equal(before[name], after[name])}
    assert unchanged == FIXED
    assert {name for name, p in model.named_parameters() if p.stop_gradient} == FIXED
    assert all(p.persistable for p in model.parameters())
    assert model.no_weight_decay() == FIXED | {'cls_token'}
    assert build_tiny('transformer').no_weight_decay() == {'cls_token', 'pos_embed'}


@pytest.mark.parametrize('token_type', ['performer', 'transformer'])
@pytest.mark.parametrize('zero_head', [False, True])
def test_every_trained_parameter_gets_a_gradient(token_type, zero_head):
    paddle.seed(2)
    model = build_tiny(token_type, zero_head=zero_head, qkv_bias=True)
    if zero_head:
        assert not model.head.weight.numpy().any()
    optimizer = paddle.optimizer.AdamW(1e-3, parameters=model.parameters())
    loss_of = nn.CrossEntropyLoss()
    for _ in range(2):
        optimizer.clear_grad()
        loss_of(model(draw_images(4, 3, 64, 64)), paddle.to_tensor([0, 1, 2, 3])).backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        if name in FIXED:
            assert parameter.grad is None, name
        else:
            assert parameter.grad.numpy().any(), name


def test_stochastic_depth():
    model = build_tiny(depth=5, droppath=0.2)
    rates = [block.drop_path.rate for block in model.blocks]
    assert rates == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2])
    paddle.seed(0)
    drop_path = DropPath(0.25)
    ones = paddle.ones([4000, 2, 3])
    dropped = drop_path(ones).numpy()
    assert set(np.unique(dropped)) == {np.float32(0), np.float32(1 / 0.75)}
    assert (dropped == dropped[:, :1, :1]).all(), 'whole images are dropped'
    assert abs(dropped.mean() - 1.0) < 0.04
    drop_path.eval()
    np.testing.assert_array_equal(drop_path(ones).numpy(), ones.numpy())
    # In the model: with every branch of the last block dropped, its weights do not matter.
    model = build_tiny('transformer', depth=2, droppath=0.999999)
    images = draw_images(2, 3, 64, 64)
    before = model(images).numpy()
    with paddle.no_grad():
        model.blocks[1].mlp.fc2.bias.set_value(paddle.ones([64]))
    np.testing.assert_array_equal(model(images).numpy(), before)


def test_only_the_performer_has_dropout_of_its_own():
    images = draw_images(2, 3, 64, 64)
    for token_type, differs in (('performer', True), ('transformer', False)):
        model = build_tiny(token_type)
        assert (model(images).numpy() != model(images).numpy()).any() == differs
    stem = build_tiny().patch_embed
    assert [(module.dropout.p, module.no_dropout.p) for module in (stem.attn1, stem.attn2)] \
        == [(0.1, 0.0)] * 2
    model = build_tiny('transformer', dropout=0.3, attention_dropout=0.2)
    rates = [(block.attn.attn_dropout.p, block.attn.proj_dropout.p, block.mlp.dropout.p)
             for block in model.blocks]
    assert rates == [(0.2, 0.3, 0.3)] * 2
    assert model.pos_dropout.p == 0.3
    model = build_tiny('transformer')
    model.pos_dropout.p = 0.5
    assert (model(images).numpy() != model(images).numpy()).any()


def test_recompute_gives_the_same_gradients():
    gradients = []
    for recompute in (False, True):
        paddle.seed(3)
        model = build_tiny(dropout=0.2, droppath=0.5, depth=3, recompute=recompute)
        paddle.seed(4)
        model(draw_images(3, 3, 64, 64)).square().sum().backward()
        gradients.append({name: parameter.grad.numpy()
                          for name, parameter in model.named_parameters() if name not in FIXED})
    for name, gradient in gradients[0].items():
        np.testing.assert_array_equal(gradients[1][name], gradient, err_msg=name)


def test_recompute_trains_above_frozen_layers():
    model = build_tiny('transformer', recompute=True)
    for parameter in [*model.patch_embed.parameters(), model.cls_token]:
        parameter.stop_gradient = True
    model(draw_images(1, 3, 64, 64)).sum().backward()
    assert model.blocks[0].attn.qkv.weight.grad.numpy().any()


# Numerics


def performer_attention(q, k, v, w):
    """Performer attention in float64, by the formula."""
    q, k, v, w = (np.asarray(x, 'float64') for x in (q, k, v, w))

    def phi(x):
        return np.exp(x @ w.T - (x ** 2).sum(-1, keepdims=True) / 2) / math.sqrt(len(w))

    scores = phi(q) @ phi(k).transpose(0, 2, 1)
    return scores @ v / (scores.sum(-1, keepdims=True) + 1e-8)


@pytest.mark.parametrize('dtype, tolerance', [
    ('float32', 2e-6), ('float16', 1e-3), ('bfloat16', 8e-3)])
@pytest.mark.parametrize('scale', [0.3, 0.8])
def test_performer_attention_is_computed_in_float32(dtype, tolerance, scale):
    """Where the normalizer falls below float16's least number, too: 1e-8 would be lost there."""
    paddle.seed(5)
    layer = TokenPerformer(27, 64)
    q, k, v = ((draw_images(2, 20, 64, seed=i) * scale).astype(dtype) for i in range(3))
    attended = layer.attend(q, k, v)
    assert attended.dtype == v.dtype
    assert layer.features(q.astype('float32')).dtype == paddle.float32
    arrays = [x.astype('float32').numpy() for x in (q, k, v)]
    expected = performer_attention(*arrays, layer.w.numpy())
    assert np.abs(expected).max() > 0.1
    difference = np.abs(attended.astype('float32').numpy() - expected)
    assert difference.max() <= tolerance * np.abs(expected).max()


def test_performer_features_stay_finite():
    """The exponent is bounded by |w|^2 / 2 = m / 2, however large or small the input."""
    layer = TokenPerformer(27, 64)
    along_w = layer.w.numpy()[:1]                   # where the bound is reached
    for scale in (0.0, 1.0, 1e3, 1e6):
        features = layer.features(paddle.to_tensor(scale * along_w[None])).numpy()
        assert np.isfinite(features).all()
        assert features.max() <= math.exp(16.001) / math.sqrt(32)
    huge = draw_images(1, 8, 64) * 1e4
    huge.stop_gradient = False
    layer.attend(huge, huge, huge).sum().backward()
    assert np.isfinite(huge.grad.numpy()).all()


def test_attention_leaves_autocast(monkeypatch):
    """auto_cast does nothing on CPUs, so what is asked of it is what can be seen."""
    asked = []
    auto_cast = paddle.amp.auto_cast
    monkeypatch.setattr(paddle.amp, 'auto_cast',
                        lambda **options: asked.append(options) or auto_cast(**options))
    layer = TokenPerformer(27, 64)
    features = layer.features

    def inside(x):
        assert asked, 'features are computed outside the region'
        return features(x)

    monkeypatch.setattr(layer, 'features', inside)
    layer(draw_images(1, 4, 27))
    assert asked == [{'enable': False}]


def test_o2_leaves_fixed_tensors_in_float32():
    model = build_tiny()
    initialize = importlib.import_module('paddle.amp.auto_cast').amp_initialize
    initialize(models=[model], dtype='bfloat16', excluded_layers=None)
    types = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    assert types['blocks.0.attn.qkv.weight'] == paddle.bfloat16
    kept = {name for name, dtype in types.items() if dtype == paddle.float32}
    assert kept == FIXED | {'cls_token'}


def test_set_numerics():
    model = fill_t2t(build_tiny())
    model.eval()
    images = draw_images(2, 3, 64, 64)
    erf = model(images).numpy()
    model.set_numerics(gelu='tanh')
    assert (model.gelu, model.layer_norm_eps) == ('tanh', 1e-5)
    tanh = model(images).numpy()
    np.testing.assert_array_equal(
        fill_and_run(images, gelu='tanh'), tanh, 'the same as when built so')
    assert 1e-6 < np.abs(tanh - erf).max() < 1e-2
    model.set_numerics(gelu='erf', layer_norm_eps=1e-4)
    assert 1e-6 < np.abs(model(images).numpy() - erf).max() < 1e-2
    np.testing.assert_array_equal(fill_and_run(images, layer_norm_eps=1e-4), model(images).numpy())
    model.set_numerics(layer_norm_eps=1e-5)
    np.testing.assert_array_equal(model(images).numpy(), erf)
    with pytest.raises(ValueError, match='gelu'):
        model.set_numerics(gelu='quick')


def fill_and_run(images, **changes):
    model = fill_t2t(build_tiny(**changes))
    model.eval()
    return model(images).numpy()


def test_scale_of_the_scores():
    """Blocks: head width. Token transformer: width of its input. qk_scale: blocks only."""
    model = build_tiny('transformer')
    assert model.blocks[0].attn.scale == 32 ** -0.5
    assert model.patch_embed.attn1.attn.scale == 147 ** -0.5
    assert model.patch_embed.attn2.attn.scale == 576 ** -0.5
    model = build_tiny('transformer', qk_scale=0.25)
    assert model.blocks[1].attn.scale == 0.25
    assert model.patch_embed.attn1.attn.scale == 147 ** -0.5


def test_attention_can_be_read_by_a_hook():
    model = build_tiny()
    model.eval()
    seen = []
    model.blocks[1].attn.attn_dropout.register_forward_pre_hook(
        lambda layer, inputs: seen.append(inputs[0].numpy()))
    model(draw_images(2, 3, 64, 64))
    assert seen[0].shape == (2, 2, 17, 17)
    np.testing.assert_allclose(seen[0].sum(-1), 1.0, atol=1e-6)


# Initialisation


def test_position_embedding_is_the_sinusoid():
    table = sinusoid(17, 64)[0]
    for position in (0, 1, 16):
        for channel in (0, 1, 10, 31, 63):
            angle = position / 10000 ** (2 * (channel // 2) / 64)
            expected = math.cos(angle) if channel % 2 else math.sin(angle)
            assert table[position, channel] == pytest.approx(expected, abs=1e-7)
    np.testing.assert_array_equal(build_tiny().pos_embed.numpy()[0], table)


def test_initial_weights():
    """Deviation 0.02 on every Paddle version; a cut at two deviations would give 0.0176."""
    paddle.seed(6)
    model = build_tiny(embed_dim=256, depth=1, num_heads=4, qkv_bias=True)
    for name, layer in model.named_sublayers():
        if isinstance(layer, nn.Linear):
            weight = layer.weight.numpy()
            deviation = 0.02 / math.sqrt(2 * weight.size)       # of the estimate
            assert abs(weight.std() - 0.02) < 5 * deviation, name
            assert abs(weight.mean()) < 5 * 0.02 / math.sqrt(weight.size), name
            assert not layer.bias.numpy().any() if layer.bias is not None else True, name
        elif isinstance(layer, nn.LayerNorm):
            assert (layer.weight.numpy() == 1).all() and (layer.bias.numpy() == 0).all(), name
    beyond = np.abs(model.blocks[0].mlp.fc1.weight.numpy()) > 0.04
    assert 0.04 < beyond.mean() < 0.051, 'a normal has 4.6 % beyond two deviations'
    assert 0.015 < model.cls_token.numpy().std() < 0.025


def test_performer_projection_is_orthogonal():
    paddle.seed(7)
    first, second = TokenPerformer(27, 64), TokenPerformer(27, 64)
    gram = first.w.numpy() @ first.w.numpy().T
    np.testing.assert_allclose(gram, 32 * np.eye(32), atol=1e-4)
    assert (first.w.numpy() != second.w.numpy()).any()
    paddle.seed(7)
    np.testing.assert_array_equal(TokenPerformer(27, 64).w.numpy(), first.w.numpy())


# Config


def test_default_config_is_t2t_vit_14():
    config = get_config()
    model = build_t2t_vit(config)
    assert count(model.parameters()) == MODELS['t2t_vit_14']['params_total']
    assert config.MODEL.LAYER_NORM_EPS == model.layer_norm_eps == 1e-5
    assert {'MODEL.TOKEN_TYPE', 'MODEL.QK_SCALE', 'MODEL.ZERO_HEAD'} <= set(list_options(Options))


def test_config_reaches_the_model():
    options = {
        'MODEL.NUM_CLASSES': 5, 'MODEL.TOKEN_TYPE': 'transformer', 'MODEL.TOKEN_DIM': 32,
        'MODEL.EMBED_DIM': 48, 'MODEL.DEPTH': 3, 'MODEL.NUM_HEADS': 4, 'MODEL.MLP_RATIO': 1.5,
        'MODEL.QKV_BIAS': True, 'MODEL.QK_SCALE': 0.5, 'MODEL.DROPOUT': 0.1,
        'MODEL.ATTENTION_DROPOUT': 0.2, 'MODEL.DROPPATH': 0.3, 'MODEL.GELU': 'tanh',
        'MODEL.LAYER_NORM_EPS': 1e-6, 'MODEL.RECOMPUTE': True, 'MODEL.ZERO_HEAD': True,
        'DATA.IMAGE_SIZE': 32, 'DATA.IMAGE_CHANNELS': 1,
        'DATA.IMAGENET_MEAN': [0.5], 'DATA.IMAGENET_STD': [0.5],
    }
    model = build_t2t_vit(get_config(flags=options))
    assert isinstance(model.patch_embed.attn1, TokenTransformer)
    assert model.patch_embed.attn1.attn.qkv.weight.shape == [49, 96]
    block = model.blocks[2]
    assert (block.attn.num_heads, block.attn.scale, block.drop_path.rate) == (4, 0.5, 0.3)
    assert block.attn.qkv.bias.shape == [144] and block.mlp.fc1.weight.shape == [48, 72]
    assert (block.attn.attn_dropout.p, block.mlp.dropout.p) == (0.2, 0.1)
    assert (model.gelu, model.layer_norm_eps, model.recompute) == ('tanh', 1e-6, True)
    assert model(paddle.zeros([2, 1, 32, 32])).numpy().tolist() == [[0.0] * 5] * 2


@pytest.mark.parametrize('key, value, words', [
    ('DATA.IMAGE_SIZE', '100', 'DATA.IMAGE_SIZE 100 is not a multiple of 16; use 96 or 112'),
    ('DATA.IMAGE_SIZE', '8', 'use 16'),
    ('MODEL.NUM_HEADS', '7', 'MODEL.EMBED_DIM 384 is not a multiple of MODEL.NUM_HEADS 7'),
    ('MODEL.TOKEN_TYPE', 'perfomer', 'Did you mean performer'),
    ('MODEL.TOKEN_DIM', '1', 'MODEL.TOKEN_DIM'),
    ('MODEL.DEPTH', '0', 'MODEL.DEPTH must be above 0'),
    ('MODEL.TRANS.DEPTH', '3', 'Did you mean MODEL.DEPTH'),
])
def test_config_refuses_what_cannot_be_built(key, value, words):
    with pytest.raises(UserError, match=words):
        get_config(opts=[key, value])


def test_recipe_of_every_imagenet_yaml():
    """Official settings, at 512 images an update."""
    for name in MODELS:
        config = get_config(CONFIGS / f'{name}.yaml')
        train = config.TRAIN
        lite = config.MODEL.EMBED_DIM == 256
        base_lr, weight_decay, crop_pct = train.BASE_LR, train.WEIGHT_DECAY, config.DATA.CROP_PCT
        assert base_lr == (1e-3 if lite else 5e-4), name
        assert weight_decay == (0.03 if lite else 0.05 if config.MODEL.DEPTH == 14 else 0.065), name
        assert crop_pct == (1.0 if name.endswith('384') else 0.9), name
        assert (train.NUM_EPOCHS, train.COOLDOWN_EPOCHS, train.WARMUP_EPOCHS) == (300, 10, 10)
        assert (train.WARMUP_START_LR, train.END_LR, train.LINEAR_SCALED_LR) == (1e-6, 1e-5, 512)
        assert train.LR_SCHEDULER.FROM_START and train.MODEL_EMA and train.GRAD_CLIP is None
        assert config.DATA.IMAGENET_MEAN == [0.485, 0.456, 0.406]
        text = (CONFIGS / f'{name}.yaml').read_text()
        assert text.startswith('# T2T-ViT') and f'{name}.yaml' in text
        assert 'Not trained here.' in text
