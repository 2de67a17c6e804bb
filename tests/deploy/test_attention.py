"""Attention weights and rollout against NumPy, and the figure that shows them."""

import numpy as np
import paddle
import pytest
from PIL import Image

from common.data.digits import load_digits_rgb
from common.deploy import visualize
from common.deploy.attention import make_map, record_attention, roll_out
from common.deploy.drawing import darken, overlay
from common.deploy.visualize import View
from common.errors import UserError
from T2T_ViT.t2t_vit import T2TViT
from T2T_ViT.token_attention import list_token_modules
from tests.support.recipe import fill_by_recipe, recipe_images
from tests.support.trained_digits import fixture_path, load_fixture
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
    {}, {'attn_head_size': 5}, {'class_token': False, 'pool': 'avg'}, {'register_tokens': 3},
    {'distilled': True, 'register_tokens': 1}, {'pool': 'map', 'register_tokens': 2}])
def test_vit_attention_equals_numpy(options):
    model, images = make_vit(**options), images_of(VIT)
    attention = record_attention(model, images)
    logits, projections = run_and_capture(model, [b.attn.qkv for b in model.blocks], images)
    expected = np.stack([attend(qkv, 3) for qkv in projections])
    np.testing.assert_allclose(attention.layers, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(attention.layers.sum(axis=-1), 1, atol=1e-5)
    np.testing.assert_array_equal(attention.logits, logits)
    classes = int(options.get('class_token', True)) + options.get('distilled', 0)
    prefix = classes + options.get('register_tokens', 0)
    assert (attention.prefix, attention.grid) == (prefix, (4, 6))
    reads_patches = options.get('pool', 'token') != 'token'
    assert attention.reader == list(range(prefix, prefix + 24) if reads_patches
                                    else range(classes))
    tokens = prefix + 24
    rolled = roll_out(attention.layers)[-1]
    assert make_map(rolled, attention.reader, prefix, attention.grid).shape == (2, 4, 6)
    assert attention.layers.shape == (3, 2, 3, tokens, tokens)


def test_attention_pooling_says_how_much_each_patch_counts():
    model, images = make_vit(pool='map', register_tokens=2), images_of(VIT)
    pool = model.attention_pool
    attention = record_attention(model, images)
    _, (keys_values,) = run_and_capture(model, [pool.kv], images)
    query = pool.q(pool.latent).numpy().astype('float64').reshape(3, 8)
    keys = keys_values[..., :24].reshape(2, 24, 3, 8)
    expected = softmax(np.einsum('hd,bnhd->bhn', query, keys) * 8 ** -0.5).mean(axis=1)
    np.testing.assert_allclose(attention.shares, expected, rtol=0, atol=1e-6)
    assert not pool.attn_dropout._forward_pre_hooks

    view = View(attention)
    rolled = roll_out(attention.layers)[-1, 0]
    by_hand = sum(share * rolled[token, 3:] for share, token in zip(expected[0], range(3, 27)))
    np.testing.assert_allclose(view.map_rollout()[-1].reshape(-1), by_hand, rtol=1e-5)
    cell = View(attention, token='1,2').map_rollout()[-1]
    np.testing.assert_allclose(cell.reshape(-1), rolled[3 + 8, 3:], rtol=1e-6)
    assert view.name_token() != View(attention, token='1,2').name_token()
    assert make_vit(pool='avg').attention_pool is None


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


def record_vit():
    return record_attention(make_vit(), images_of(VIT)[:1])


def test_view_shows_the_layer_and_the_token_that_were_asked_for():
    attention = record_vit()
    view = View(attention, layer=2, token='1,4')
    row = 1 + 1 * 6 + 4
    np.testing.assert_array_equal(
        view.map_heads(), attention.layers[1, 0, :, row, 1:].reshape(3, 4, 6))
    np.testing.assert_array_equal(
        view.map_rollout()[-1], roll_out(attention.layers)[-1, 0, row, 1:].reshape(4, 6))
    assert View(attention).layer == View(attention, layer=3).layer == 3
    np.testing.assert_array_equal(
        View(attention).map_heads(), attention.layers[2, 0, :, 0, 1:].reshape(3, 4, 6))


@pytest.mark.parametrize('layer, token, message', [
    (4, None, 'layers 1 to 3'), (0, None, 'layers 1 to 3'), (-4, None, 'layers 1 to 3'),
    (1, '4,0', 'from 0,0 to 3,5'), (1, '1', 'ROW,COLUMN'), (1, '-1,2', 'ROW,COLUMN')])
def test_view_refuses_what_the_model_has_not(layer, token, message):
    with pytest.raises(UserError, match=message):
        View(record_vit(), layer, token)


def test_token_modules_are_shown_for_the_tokens_inside_the_chosen_one():
    model = make_t2t()
    attention = record_attention(model, images_of(T2T)[:1], list_token_modules(model))
    weights = attention.stem['token module 1'][0][0].reshape(8, 12, 8, 12)
    view = View(attention, token='1,2')             # a token is 4 x 4 of the first module's
    np.testing.assert_allclose(
        view.map_stem()['token module 1'], weights[4:8, 8:12].mean(axis=(0, 1)), atol=1e-7)
    np.testing.assert_allclose(
        View(attention).map_stem()['token module 1'], weights.mean(axis=(0, 1)), atol=1e-7)


@pytest.mark.parametrize('scale, title', [
    (1, 'x (0 to 0.062)'), (8, 'x (0 to 0.5)'), (1e-6, 'x (0 to 0.062, sum 1e-06)')])
def test_the_title_of_a_map_tells_its_scale_and_rows_that_sum_to_nothing(scale, title):
    assert visualize.name_map('x', np.full((4, 4), scale / 16)) == title


def measure_brightness(image):
    return np.asarray(image).astype(int).sum(axis=2)


def test_overlay_is_lightest_where_the_map_is_highest():
    gray = Image.new('RGB', (40, 60), (128, 128, 128))
    weights = np.zeros((3, 2))
    weights[2, 1] = 0.2                             # scaled by its maximum
    brightness = measure_brightness(overlay(gray, weights))
    assert brightness.shape == (60, 40)
    assert np.unravel_index(brightness.argmax(), brightness.shape) >= (45, 25)
    assert brightness[-1, -1] > 450 > 200 > brightness[0, 0]
    dark = measure_brightness(darken(gray, weights))
    assert dark[-1, -1] == 3 * 128 and dark[0, 0] == 0


def test_rows_that_sum_to_nothing_stay_dark():
    gray = Image.new('RGB', (40, 60), (128, 128, 128))
    nothing = np.zeros((3, 2))
    nothing[2, 1] = 1e-8
    assert measure_brightness(overlay(gray, nothing)).max() < 200
    even = np.full((3, 2), 1 / 6)
    assert measure_brightness(overlay(gray, even)).min() > 450


def test_rollout_of_a_trained_model_falls_on_the_ink():
    project, trained = load_fixture('vit')
    images, labels = load_digits_rgb()
    density, hits = [], 0
    for image, label in zip(images[:60], labels[:60]):
        crop = trained.preprocessing.crop(Image.fromarray(image))
        attention = record_attention(trained.model, trained.preprocessing.normalize([crop]))
        hits += attention.logits[0].argmax() == label
        ink = image[:, :, 0] > 0                    # 8 x 8, as the model's tokens
        rollout = View(attention).map_rollout()[-1]
        density.append(rollout[ink].mean() / rollout[~ink].mean())
    assert hits >= 51
    assert np.mean(density) > 1.1 and np.mean(np.array(density) > 1) > 0.9


@pytest.mark.parametrize('name', ['vit', 't2t'])
def test_script_writes_a_figure_and_arrays(name, tmp_path, capsys):
    picture = tmp_path / '图片.png'
    Image.fromarray(load_digits_rgb()[0][3]).save(picture)
    project, trained = load_fixture(name)
    code = visualize.main(project, [
        str(picture), f'-pretrained={fixture_path(name)}', f'-output={tmp_path}', '-save_arrays',
        '--layer=1'])
    assert code == 0, capsys.readouterr().err
    with Image.open(tmp_path / '图片.attention.png') as figure:
        assert figure.width == 4 * 488 + 8 and figure.height > 1500
    with np.load(tmp_path / '图片.attention.npz') as arrays:
        assert arrays['layer'] == 1 and arrays['attention'].shape[0] == len(trained.model.blocks)
        np.testing.assert_allclose(arrays['attention'].sum(axis=-1), 1, atol=1e-5)
        assert ('token_module_2' in arrays) == (name == 't2t')
    assert visualize.main(project, [str(picture), '-pretrained=x', '-layers=1']) == 2
    assert 'Unknown flag -layers. Did you mean layer?' in capsys.readouterr().err


def test_a_bad_picture_is_named_and_the_others_are_drawn(tmp_path, capsys):
    bad, good = tmp_path / 'bad.jpg', tmp_path / 'good.png'
    bad.write_text('no picture')
    Image.fromarray(load_digits_rgb()[0][0]).save(good)
    code = visualize.main(load_fixture('vit')[0], argv=[
        str(bad), str(good), f'-pretrained={fixture_path("vit")}', f'-output={tmp_path / "out"}'])
    assert code == 1
    assert [path.name for path in (tmp_path / 'out').iterdir()] == ['good.attention.png']
    printed = capsys.readouterr()
    assert 'bad.jpg: not an image' in printed.out + printed.err


def test_another_models_checkpoint_is_refused(capsys):
    assert visualize.main(load_fixture('vit')[0], [
        'x.png', f'-pretrained={fixture_path("t2t")}']) == 2
    assert 'is a checkpoint of T2T-ViT, and this script is for ViT' in capsys.readouterr().err
