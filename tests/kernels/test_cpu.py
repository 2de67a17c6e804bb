"""The CPU's kernels give the numbers of the plain functions."""

import subprocess
import sys

import numpy as np
import paddle
import pytest
from paddle import nn

from common.kernels import compiled, install, installed, row_kernels
from common.training.optimizer import clip_gradients
from T2T_ViT.t2t_vit import T2TViT
from tests.support import reference_training as reference
from tests.support.numpy_dropout import dropout_by_numpy
from tests.support.paths import ROOT
from ViT.vit import LayerNorm, Linear, Mlp, VisionTransformer, build_vit

TOLERANCE = 1e-5        # of the largest value of each tensor

CASES = {
    'vit': (VisionTransformer, {}),
    'vit, tanh, mean of tokens': (VisionTransformer, {'gelu': 'tanh', 'pool': 'avg'}),
    'vit, dropout': (VisionTransformer, {'dropout': 0.1, 'attention_dropout': 0.1,
                                         'droppath': 0.2}),
    'vit, recompute': (VisionTransformer, {'recompute': True, 'dropout': 0.1}),
    'vit, no qkv bias, other head size': (VisionTransformer, {'qkv_bias': False,
                                                              'attn_head_size': 10}),
    't2t': (T2TViT, {'qkv_bias': False}),
    't2t, transformer, dropout': (T2TViT, {'token_type': 'transformer', 'dropout': 0.1,
                                           'qk_scale': 0.3}),
    't2t, tanh, recompute': (T2TViT, {'gelu': 'tanh', 'recompute': True}),
}


def build(name, **more):
    paddle.seed(1)
    kind, options = CASES[name]
    return kind(image_size=48, embed_dim=48, depth=3, num_heads=4, num_classes=10,
                **options, **more)


def make_batch():
    generator = np.random.default_rng(0)
    return (paddle.to_tensor(generator.standard_normal((3, 3, 48, 48)).astype('float32')),
            paddle.to_tensor(generator.integers(0, 10, 3)))


def run_once(model):
    """Return the loss in training, the gradients, and the logits in evaluation."""
    images, labels = make_batch()
    model.train()
    paddle.seed(3)
    loss = nn.functional.cross_entropy(model(images), labels)
    loss.backward()
    gradients = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()
                 if parameter.grad is not None}
    for parameter in model.parameters():
        parameter.clear_gradient(False)
    model.eval()
    with paddle.no_grad():
        logits = model(images).numpy()
    return loss.item(), gradients, logits


def assert_close(found, expected, name=''):
    scale = max(np.abs(expected).max(), 1e-6)
    np.testing.assert_allclose(found / scale, expected / scale, rtol=0, atol=TOLERANCE,
                               err_msg=name)


def assert_same_run(found, expected):
    assert found[0] == pytest.approx(expected[0], rel=TOLERANCE)
    assert set(found[1]) == set(expected[1])
    for name, gradient in expected[1].items():
        assert_close(found[1][name], gradient, name)
    assert_close(found[2], expected[2])


@pytest.mark.parametrize('name', CASES)
def test_numbers_are_the_plain_model_s(name):
    model = build(name)
    with dropout_by_numpy(model):
        plain = run_once(model)
    names = list(model.state_dict())
    assert install(model, 'cpu') >= 20
    assert_same_run(run_once(model), plain)
    assert list(model.state_dict()) == names


@pytest.mark.parametrize('name', ['vit', 'vit, tanh, mean of tokens', 'vit, dropout', 't2t'])
def test_the_same_without_compiled_kernels(name, monkeypatch):
    monkeypatch.setenv(compiled.SWITCH, '0')
    row_kernels.load_kernels.cache_clear()
    try:
        test_numbers_are_the_plain_model_s(name)
        assert row_kernels.load_kernels() is None
    finally:
        row_kernels.load_kernels.cache_clear()


def test_the_plain_functions_come_back():
    model = build('vit')
    plain = run_once(model)
    install(model, 'cpu')
    install(model, 'plain')
    again = run_once(model)
    assert again[0] == plain[0]
    for name, gradient in plain[1].items():
        np.testing.assert_array_equal(again[1][name], gradient)


@pytest.mark.parametrize('name', ['vit', 't2t'])
def test_every_layer_of_a_block_takes_part(name):
    model = build(name)
    install(model, 'cpu')
    for block in model.blocks:
        plain = [path for path, layer in block.named_sublayers()
                 if not set(getattr(type(layer), 'kernels', ())) & set(vars(layer))
                 and not isinstance(layer, nn.Dropout)]
        assert plain == ['drop_path']
        assert {type(layer) for layer in block.sublayers(include_self=True)
                if 'forward' in vars(layer)} == {nn.Dropout}


def test_dropout_of_paddle_stays_where_it_is_another():
    """Of whole channels, or unscaled in training; and in evaluation nothing is dropped."""
    x = paddle.ones([2, 3, 64])
    layers = nn.LayerList([nn.Dropout(0.5, axis=[0, 1]), nn.Dropout(0.5, mode='downscale_in_infer'),
                           nn.Dropout(0.5), nn.Dropout(0.0), nn.Dropout(1.0)])
    install(layers, 'cpu')
    assert ['forward' in vars(layer) for layer in layers] == [False, False, True, True, True]
    found = [layer(x).numpy() for layer in layers]
    assert set(np.unique(found[0].sum(axis=-1))) <= {0.0, 128.0}
    assert set(np.unique(found[1])) == {0.0, 1.0} and set(np.unique(found[2])) == {0.0, 2.0}
    assert (found[3] == 1).all() and (found[4] == 0).all()
    layers.eval()
    assert (layers[2](x).numpy() == 1).all()
    with installed(layers, 'plain'):
        assert 'forward' not in vars(layers[2])
    assert 'forward' in vars(layers[2])


def test_the_seed_decides_what_is_dropped():
    layer = nn.Dropout(0.3)
    install(layer, 'cpu')
    x, found = paddle.ones([1000]), []
    for seed in (5, 5, 6):
        paddle.seed(seed)
        found += [layer(x).numpy(), layer(x).numpy()]
    np.testing.assert_array_equal(found[:2], found[2:4])
    assert (found[0] != found[1]).any() and (found[0] != found[4]).any()


def test_two_runs_are_identical():
    model = build('vit, dropout')
    install(model, 'cpu')
    first, second = run_once(model), run_once(model)
    assert first[0] == second[0]
    for name in first[1]:
        np.testing.assert_array_equal(first[1][name], second[1][name])


def test_frozen_parameters_get_no_gradient():
    model = build('vit')
    frozen = {name for name, _ in model.named_parameters()
              if name.startswith('encoder.layers.0') or name.endswith(('fc1.weight', 'norm.bias'))}
    for name, parameter in model.named_parameters():
        parameter.stop_gradient = name in frozen
    plain = run_once(model)
    install(model, 'cpu')
    found = run_once(model)
    assert not frozen & set(found[1])
    assert_same_run(found, plain)


def test_gradient_of_the_images():
    model = build('vit')
    images, _ = make_batch()
    gradients = []
    for _ in range(2):
        pixels = images.clone()
        pixels.stop_gradient = False
        model(pixels).square().sum().backward()
        gradients.append(pixels.grad.numpy())
        install(model, 'cpu')
    assert_close(gradients[1], gradients[0])


def test_hooks_still_see_the_attention():
    model = build('vit')
    seen = []
    for block in model.blocks:
        block.attn.attn_dropout.register_forward_pre_hook(
            lambda layer, inputs: seen.append(inputs[0].numpy()))
    images, _ = make_batch()
    model.eval()
    model(images)
    install(model, 'cpu')
    model(images)
    assert len(seen) == 6
    for plain, found in zip(seen[:3], seen[3:]):
        np.testing.assert_allclose(found, plain, atol=1e-6)


def test_other_types_take_the_plain_way():
    layer = Linear(4, 3)
    layer.to(dtype='float64')
    install(layer, 'cpu')
    x = paddle.ones([2, 4], 'float64')
    assert layer(x).dtype == paddle.float64


def test_views_are_read_as_they_are():
    layer = nn.Sequential(LayerNorm(6), Linear(6, 5), Mlp(5, 7, 0.0, 'erf'), Linear(5, 6))
    whole = paddle.randn([4, 3, 6])
    views = [whole[:, 1], whole[1:, 0], whole.transpose([1, 0, 2]), whole[2:]]
    plain = [layer(view).numpy() for view in views]
    install(layer, 'cpu')
    for view, expected in zip(views, plain):
        assert_close(layer(view).numpy(), expected)


@pytest.mark.parametrize('approximate', [False, True])
def test_gelu_s_gradient(approximate):
    """Against central differences of the definition in float64, far out too."""
    from math import erf, pi, sqrt
    values = np.concatenate([np.linspace(-12, 12, 400), [-1e4, 1e4, 0, 1e-8]])

    def gelu(x):
        if approximate:
            return x * (1 + np.tanh(sqrt(2 / pi) * (x + 0.044715 * x ** 3))) / 2
        return x * (1 + np.array([erf(item / sqrt(2)) for item in x])) / 2

    layer = Mlp(1, 1, 0.0, 'tanh' if approximate else 'erf')
    for linear in (layer.fc1, layer.fc2):
        nn.initializer.Constant(1.0)(linear.weight)
    install(layer, 'cpu')
    x = paddle.to_tensor(values[:, None].astype('float32'), stop_gradient=False)
    layer(x).sum().backward()
    exact = values.astype('float32').astype('float64')
    expected = (gelu(exact + 1e-5) - gelu(exact - 1e-5)) / 2e-5
    np.testing.assert_allclose(x.grad.numpy()[:, 0], expected, atol=2e-6)


def test_layer_norm_s_gradient_keeps_its_digits():
    """Rows far from 0, of small deviation, against float64; more rows than one part holds."""
    generator = np.random.default_rng(0)
    x = 30 + generator.standard_normal((2 * 128 + 3, 32))
    grad = generator.standard_normal(x.shape)
    layer = LayerNorm(32, epsilon=1e-6)
    layer.weight.set_value(generator.standard_normal(32).astype('float32'))
    install(layer, 'cpu')
    pixels = paddle.to_tensor(x.astype('float32'), stop_gradient=False)
    layer(pixels).backward(paddle.to_tensor(grad.astype('float32')))

    x, weight = x.astype('float32').astype('float64'), layer.weight.numpy().astype('float64')
    deviation = np.sqrt(x.var(axis=1, keepdims=True) + 1e-6)
    normal = (x - x.mean(axis=1, keepdims=True)) / deviation
    inner = grad * weight
    expected = (inner - inner.mean(axis=1, keepdims=True)
                - normal * (inner * normal).mean(axis=1, keepdims=True)) / deviation
    assert_close(pixels.grad.numpy(), expected)
    assert_close(layer.weight.grad.numpy(), (grad * normal).sum(axis=0))
    assert_close(layer.bias.grad.numpy(), grad.sum(axis=0))


@pytest.mark.parametrize('name', list(reference.RUNS))
def test_training_follows_the_reference(name):
    """As tests/training/test_training_parity.py, with the kernels on."""
    def build_with_kernels(config):
        model = build_vit(config)
        install(model, 'cpu')
        return model

    runs = reference.train_as_reference(name, build_with_kernels)
    reference.check_losses(*runs)
    reference.check_gradient_norms(*runs)
    reference.check_final_weights_and_logits(*runs)


def test_norm_of_a_large_gradient_keeps_its_digits():
    parameter = nn.Linear(2000, 2000).weight
    parameter.grad = paddle.full(parameter.shape, 0.01)
    exact = float(np.float32(0.01)) * 2000
    assert float(clip_gradients([parameter], None)) == pytest.approx(exact, rel=1e-5)
    assert float(clip_gradients([parameter], 5.0)) == pytest.approx(exact, rel=1e-5)
    np.testing.assert_allclose(parameter.grad.numpy(), 5 / 2000, rtol=1e-5)


@pytest.mark.runs
def test_two_processes(tmp_path):
    path = tmp_path / 'gradients.npz'
    program = ROOT / 'tests' / 'support' / 'fast_parallel.py'
    subprocess.run([sys.executable, program, path], check=True, cwd=tmp_path, timeout=300)
    result = dict(np.load(path))
    names = [key[len('plain.'):] for key in result if key.startswith('plain.')]
    assert len(names) > 20
    for name in names:
        assert_close(result[f'fast.{name}'], result[f'plain.{name}'], name)


@pytest.mark.runs
def test_freed_memory_is_kept():
    code = ('import resource, numpy as np\n'
            'from common.machine.host_memory import keep_freed_memory\n'
            'kept = keep_freed_memory()\n'
            'for _ in range(3): np.ones(2 ** 24, "uint8")\n'
            'count = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n'
            'before = count()\n'
            'for _ in range(10): np.ones(2 ** 24, "uint8")\n'
            'print(kept, count() - before)\n')
    output = subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True, text=True,
                            capture_output=True).stdout.split()
    assert output[0] == 'False' or int(output[1]) < 1000       # 4096 pages each otherwise
