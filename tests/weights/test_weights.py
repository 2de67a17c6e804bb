"""load_pretrained: every format gives its source's logits; what does not fit is named."""

import json
import logging
import os
import pickle
import shutil

import numpy as np
import paddle
import pytest

from common.errors import UserError
from common.weights import LoadReport, describe_numerics, load_from_config, load_pretrained
from common.weights.resize import METHODS, resize_positions
from tests.support.foreign_weights import (
    CASES,
    WEIGHTS,
    case_name,
    hybrid,
    in21k,
    t2t,
    vit,
)
from tests.support.recipe import fill_by_recipe


@pytest.mark.parametrize('case', CASES, ids=case_name)
def test_logits_are_the_sources(case):
    folder, file, form, build, options, expected_file, array = case
    model = build()
    report = load_pretrained(model, os.path.join(WEIGHTS, folder, file), **options)
    assert report.format == form
    assert report.complete and not report.missing and not report.replaced
    assert set(report.loaded) == set(model.state_dict())
    expected = np.load(os.path.join(WEIGHTS, folder, f'{expected_file}.npz'))
    model.eval()
    logits = model(paddle.to_tensor(expected['x'])).numpy()
    error = np.abs(logits - expected[array]).max()
    if folder.startswith('t2t'):
        assert error <= (1e-5 if 'resized' in expected_file else 5e-6)
    assert error <= 2e-6 * np.abs(expected[array]).max()
    for name in ('pos_embedding', 'pos_embed'):
        if name in expected:
            assert list(report.resized) == [
                'pos_embed' if folder.startswith('t2t') else 'position_embedding']
            embedding = model.state_dict()[list(report.resized)[0]].numpy()
            np.testing.assert_allclose(embedding, expected[name], rtol=0, atol=1e-6)


def fixture(folder, file):
    return os.path.join(WEIGHTS, folder, file)


TIMM = fixture('vit/timm_safetensors', 'model.safetensors')
GOOGLE = fixture('vit/google_npz', 'ViT-tiny_fixture.npz')
IN21K = fixture('vit/google_npz_in21k', 'ViT-tiny_fixture_in21k.npz')


def test_report_counts_and_words():
    report = load_pretrained(vit(96, num_classes=10), GOOGLE)
    assert report.format == 'Google' and report.source == GOOGLE
    assert len(report.loaded) == 42 and not report.missing and not report.complete
    assert set(report.replaced) == {'classifier.weight', 'classifier.bias'}
    assert report.numerics_changed == {'gelu': ('erf', 'tanh')}
    text = '\n'.join(report.summary())
    assert 'loaded 42 of 44 tensors' in text
    assert 'from 4 x 4 to 6 x 6 patches, method google' in text
    assert '7 classes in the file, 10 in the model' in text
    assert 'gelu tanh; the model had erf' in text


def test_numerics_of_the_model_are_kept_on_request():
    model = vit(gelu='erf', layer_norm_eps=1e-4)
    report = load_pretrained(model, GOOGLE, numerics='model')
    assert not report.numerics_changed and report.numerics['gelu'] == 'tanh'
    assert describe_numerics(model) == {'gelu': 'erf', 'layer_norm_eps': 1e-4,
                                        'pre_logits_activation': None, 'num_heads': 4,
                                        'grid_size': [4, 4]}
    load_pretrained(model, GOOGLE)
    assert describe_numerics(model)['gelu'] == 'tanh'
    assert describe_numerics(model)['layer_norm_eps'] == 1e-6


def test_paddlevits_pre_logits_are_relu(tmp_path):
    model = in21k()
    paddle.save(model.state_dict(), str(tmp_path / 'a.pdparams'))
    load_pretrained(model, tmp_path / 'a.pdparams')
    assert describe_numerics(model)['pre_logits_activation'] == 'relu'
    load_pretrained(model, IN21K)
    assert describe_numerics(model)['pre_logits_activation'] == 'tanh'


def test_recorded_numerics_and_grid_have_the_last_word(tmp_path):
    model = fill_by_recipe(vit((32, 128), gelu='tanh', layer_norm_eps=1e-5))     # 2 x 8 patches
    path = str(tmp_path / 'a.pdparams')
    paddle.save({'model': model.state_dict(), 'epoch': 1, 'numerics': describe_numerics(model)},
                path)
    same = vit((32, 128))
    report = load_pretrained(same, path)
    assert not report.resized
    assert describe_numerics(same)['gelu'] == 'tanh'
    assert describe_numerics(same)['layer_norm_eps'] == 1e-5
    np.testing.assert_array_equal(same.position_embedding.numpy(),
                                  model.position_embedding.numpy())
    report = load_pretrained(vit((64, 64)), path)           # as many patches, but 4 x 4
    assert report.resized['position_embedding'] == 'from 2 x 8 to 4 x 4 patches, method timm'


def test_head_of_another_size():
    zero = vit(num_classes=5)
    load_pretrained(zero, TIMM)
    assert not zero.classifier.weight.numpy().any()
    models = [vit(num_classes=200) for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2)):
        load_pretrained(model, TIMM, head_init='trunc_normal', seed=seed)
    weights = [model.classifier.weight.numpy() for model in models]
    np.testing.assert_array_equal(weights[0], weights[1])
    assert (weights[0] != weights[2]).any()
    assert np.abs(weights[0]).max() <= 0.04 and 0.016 < weights[0].std() < 0.019
    assert not models[0].classifier.bias.numpy().any()
    np.testing.assert_array_equal(models[0].encoder.encoder_norm.weight.numpy(),
                                  zero.encoder.encoder_norm.weight.numpy())


def test_pre_logits_without_a_place_go_with_their_head():
    model = vit(num_classes=13)
    report = load_pretrained(model, IN21K)
    assert set(report.unexpected) == {'pre_logits/kernel', 'pre_logits/bias'}
    assert set(report.replaced) == {'classifier.weight', 'classifier.bias'}
    assert not model.classifier.weight.numpy().any()
    assert any('no pre-logits layer' in line for line in report.summary())


def test_pre_logits_that_the_file_lacks_are_missing():
    report = load_pretrained(vit(representation_size=48), TIMM)
    assert report.missing == ['pre_logits.0.weight', 'pre_logits.0.bias']
    assert not report.complete


def test_bare_hugging_face_model_with_pooler(tmp_path):
    from common.weights import safetensors_file
    from common.weights.containers import open_container
    source = open_container(fixture('vit/hf_vit', '')).tree
    bare = {name.removeprefix('vit.'): array for name, array in source.items()
            if name.startswith('vit.')}
    bare['pooler.dense.weight'] = np.ones((48, 48), 'f4')
    bare['pooler.dense.bias'] = np.ones(48, 'f4')
    safetensors_file.write(tmp_path / 'model.safetensors', bare, {'format': 'pt'})
    (tmp_path / 'config.json').write_text(json.dumps(
        {'layer_norm_eps': 1e-9, 'hidden_act': 'gelu_new'}))
    model = vit()
    report = load_pretrained(model, tmp_path)
    assert report.missing == ['classifier.weight', 'classifier.bias']
    assert set(report.unexpected) == {'pooler.dense.weight', 'pooler.dense.bias'}
    assert describe_numerics(model)['layer_norm_eps'] == 1e-9
    assert describe_numerics(model)['gelu'] == 'tanh'
    (tmp_path / 'config.json').write_text(json.dumps({'hidden_act': 'relu'}))
    with pytest.raises(UserError, match="activation 'relu'"):
        load_pretrained(model, tmp_path)


@pytest.mark.parametrize('change', [
    lambda q, k, v: (q[:-3], k, v), lambda q, k, v: (q, k[..., :-3], v),
    lambda q, k, v: (q, k[:-3], np.concatenate([v, v[:3]])),        # as many in all
    lambda q, k, v: (q, k, v[..., None]), lambda q, k, v: (q, k, v.sum())])
@pytest.mark.parametrize('kind', ['weight', 'bias'])
def test_queries_keys_and_values_that_cannot_be_joined(tmp_path, kind, change):
    from common.weights import safetensors_file
    from common.weights.containers import open_container
    tree = dict(open_container(fixture('vit/hf_vit', '')).tree)
    names = [f'vit.encoder.layer.0.attention.attention.{part}.{kind}'
             for part in ('query', 'key', 'value')]
    changed = change(*(tree[name] for name in names))
    tree.update({name: np.ascontiguousarray(array) for name, array in zip(names, changed)})
    safetensors_file.write(tmp_path / 'model.safetensors', tree, {'format': 'pt'})
    shutil.copy(os.path.join(fixture('vit/hf_vit', ''), 'config.json'), tmp_path)
    with pytest.raises(UserError, match='does not fit'):
        load_pretrained(vit(), tmp_path)


def write_npz(path, change):
    arrays = {change(name): array for name, array in np.load(GOOGLE).items()}
    np.savez(path, **arrays)


def test_google_numbering_of_newer_flax(tmp_path):
    numbers = {'MultiHeadDotProductAttention_1': 'MultiHeadDotProductAttention_0',
               'LayerNorm_2': 'LayerNorm_1', 'MlpBlock_3': 'MlpBlock_0'}

    def renumber(name):
        for old, new in numbers.items():
            name = name.replace(old, new)
        return name
    write_npz(tmp_path / 'new.npz', renumber)
    models = [vit(), vit()]
    load_pretrained(models[0], GOOGLE)
    load_pretrained(models[1], tmp_path / 'new.npz')
    for name, value in models[0].state_dict().items():
        np.testing.assert_array_equal(value.numpy(), models[1].state_dict()[name].numpy())


def test_hybrid_with_flat_group_norms(tmp_path):
    source = np.load(fixture('vit/google_npz_hybrid', 'R-tiny+ViT-tiny_fixture.npz'))
    np.savez(tmp_path / 'flat.npz', **{
        name: array.reshape(-1) if '/gn' in name or name.startswith('gn') else array
        for name, array in source.items()})
    report = load_pretrained(hybrid(), tmp_path / 'flat.npz')
    assert report.complete


def test_old_mmclassification_names(tmp_path):
    from common.weights.containers import open_container
    from common.weights.read import read_weights
    from ViT.formats import mmpretrain
    tree = open_container(fixture('vit/mmpretrain_pth', 'epoch_3.pth')).tree['state_dict']
    names = {'.ln1.': '.norms.0.', '.attn.qkv.': '.attentions.0.attn.in_proj_',
             '.attn.proj.': '.attentions.0.attn.out_proj.', '.ln2.': '.norms.1.',
             '.ffn.layers.': '.ffns.0.layers.'}

    def rename(name):
        if name.startswith('backbone.layers.'):
            for new, old in names.items():
                name = name.replace(new, old)
            return name.replace('backbone.layers.', 'backbone.encoder.layers.')
        return name.replace('backbone.ln1.', 'backbone.encoder.coder_norm.')
    old = {rename(name): array for name, array in tree.items()}
    assert 'backbone.encoder.layers.0.attentions.0.attn.in_proj_weight' in old
    result = mmpretrain.FORMAT.convert(old, 'backbone.')
    assert not result.leftover
    converted = result.tensors
    expected = read_weights(fixture('vit/mmpretrain_pth', 'epoch_3.pth')).tensors
    assert set(converted) == set(expected)
    for name, tensor in expected.items():
        np.testing.assert_array_equal(converted[name].get(), tensor.get())


def test_half_precision_files(tmp_path):
    from common.weights import safetensors_file
    from common.weights.containers import open_container
    tree = open_container(TIMM).tree
    safetensors_file.write(tmp_path / 'half.safetensors',
                           {name: array.astype('f2') for name, array in tree.items()}, {})
    model = vit()
    assert load_pretrained(model, tmp_path / 'half.safetensors').complete
    np.testing.assert_array_equal(model.cls_token.numpy(),
                                  tree['cls_token'].astype('f2').astype('f4'))
    assert model.cls_token.dtype == paddle.float32


def test_bfloat16_is_widened_exactly():
    from common.weights.torch_file import decode
    values = np.array([1.0, -2.5, 0.0078125, 3e38], 'f4')
    upper = (values.view(np.uint32) >> 16).astype('<u2')
    np.testing.assert_allclose(decode(upper.tobytes(), 'bf16'), values, rtol=2 ** -7)
    assert decode(upper.tobytes(), 'bf16')[:3].tolist() == [1.0, -2.5, 0.0078125]


@pytest.mark.parametrize('build, path, expected', [
    (lambda: vit(depth=2), TIMM,
     r'this is a ViT \(patch 16, embed_dim 48, depth 3\), the config is a ViT \(patch 16, '
     r'embed_dim 48, depth 2\)\.\nDetails: only in the file: blocks\.2\..*\(12 in all\)'),
    (lambda: vit(embed_dim=64), TIMM, r'embed_dim 48, depth 3\), the config is .*embed_dim 64'),
    (lambda: vit(patch_size=8), TIMM, 'the config is a ViT .patch 8'),
    (hybrid, GOOGLE, 'the config is a ResNet hybrid'),
    (t2t, TIMM, r'this is a ViT .*, the config is a T2T-ViT \(embed_dim 64, depth 2\)'),
    (lambda: vit(in_channels=1), TIMM, r'model \[48, 1, 16, 16\]'),
    (lambda: vit(qkv_bias=False), TIMM, r'only in the file: blocks.0.attn.qkv.bias'),
    (lambda: vit(class_token=False, pool='avg'), TIMM, r'only in the file: cls_token'),
    (lambda: t2t(token_type='transformer'),
     fixture('t2t/performer_ema_zip', 'tiny_t2t_performer.pth.tar'), 'with transformer tokens'),
])
def test_another_model_is_named(build, path, expected):
    model = build()
    before = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    with pytest.raises(UserError, match=expected):
        load_pretrained(model, path)
    for name, value in model.state_dict().items():         # and nothing was half-loaded
        np.testing.assert_array_equal(value.numpy(), before[name])


def test_published_sizes_have_names():
    from T2T_ViT.project import PROJECT as T2T_VIT
    from ViT.project import PROJECT as VIT
    shapes = {'cls_token': [1, 1, 1024],
              'patch_embedding.patch_embedding.weight': [1024, 3, 16, 16],
              **{f'encoder.layers.{i}.attn_norm.bias': [1024] for i in range(24)}}
    assert VIT.describe(shapes) == 'vit_large_patch16 (embed_dim 1024, depth 24)'
    shapes = {'cls_token': [1, 1, 384], **{f'blocks.{i}.norm1.bias': [384] for i in range(14)}}
    assert T2T_VIT.describe(shapes) == 't2t_vit_14 (embed_dim 384, depth 14)'


def test_allow_missing(tmp_path):
    tree = paddle.load(fixture('vit/paddlevit_pdparams', 'vit_tiny_fixture.pdparams'))
    del tree['encoder.encoder_norm.bias']
    path = str(tmp_path / 'a.pdparams')
    paddle.save(tree, path)
    with pytest.raises(UserError, match='only in the model: encoder.encoder_norm.bias'):
        load_pretrained(vit(), path)
    report = load_pretrained(vit(), path, allow_missing=True)
    assert report.missing == ['encoder.encoder_norm.bias']


def test_unknown_choices_are_named():
    for name in ('numerics', 'position_resize', 'head_init'):
        with pytest.raises(UserError, match=f"{name}: unknown value 'sourc'"):
            load_pretrained(vit(), TIMM, **{name: 'sourc'})


def test_files_that_are_no_checkpoints(tmp_path):
    def refuse(content, expected):
        path = tmp_path / 'file.pth'
        path.write_bytes(content)
        with pytest.raises(UserError, match=expected) as error:
            load_pretrained(vit(), path)
        assert 'file.pth' in str(error.value)
    refuse(b'', 'empty')
    refuse(b'<!DOCTYPE html><html>', 'a web page')
    refuse(b'version https://git-lfs.github.com/spec/v1\noid sha256:0\n', 'git lfs pull')
    refuse(b'just text', 'not a checkpoint of a known kind')
    refuse(pickle.dumps([1, 2]), 'holds no dictionary of tensors, but a list')
    refuse(pickle.dumps({'epoch': 3}), 'holds no tensors. Entries in it: epoch')
    refuse(pickle.dumps({'layer.weight': np.ones(3, 'f4')}), 'no known format .*layer.weight')
    refuse(pickle.dumps({'cls_token': np.ones((1, 1, 48), 'f4')}), 'no known format')


@pytest.mark.parametrize('first_byte', [0x80, ord('P'), ord('\n'), ord('<')])
def test_safetensors_whose_length_looks_like_another_format(tmp_path, first_byte):
    from common.weights.containers import open_container
    with open(TIMM, 'rb') as file:
        data = file.read()
    length = int.from_bytes(data[:8], 'little')
    padding = (first_byte - length) % 256
    (tmp_path / 'a').write_bytes((length + padding).to_bytes(8, 'little')
                                 + data[8:8 + length] + b' ' * padding + data[8 + length:])
    assert open_container(tmp_path / 'a').kind == 'safetensors'


def test_folders_and_names(tmp_path):
    with pytest.raises(UserError, match='holds no weights: expected model.safetensors'):
        load_pretrained(vit(), tmp_path)
    (tmp_path / 'model.safetensors.index.json').write_text('{}')
    with pytest.raises(UserError, match='is no index of weights'):
        load_pretrained(vit(), tmp_path)
    with pytest.raises(UserError, match='no such file or folder, with or without .pdparams'):
        load_pretrained(vit(), tmp_path / 'absent')


def test_torchscript_is_explained(tmp_path):
    import zipfile
    with zipfile.ZipFile(tmp_path / 'a.pth', 'w') as archive:
        archive.writestr('a/data.pkl', b'\x80\x02}.')
        archive.writestr('a/constants.pkl', b'\x80\x02).')
    with pytest.raises(UserError, match='TorchScript'):
        load_pretrained(vit(), tmp_path / 'a.pth')


def test_parts_of_a_namespace_are_never_built():
    from common.weights.containers import open_container
    from common.weights.safe_pickle import Inert
    tree = open_container(fixture('t2t/performer_train_ckpt', 'model_best.pth.tar')).tree
    assert isinstance(tree['args'], Inert) and tree['args'].name == 'argparse.Namespace'


class Node(dict):
    __getattr__ = dict.__getitem__


def make_config(**changes):
    model = {'PRETRAINED': TIMM, 'NUMERICS': 'source', 'PRETRAINED_EMA': True,
             'POSITION_RESIZE': 'source', 'HEAD_INIT': 'zero', 'ALLOW_MISSING': False}
    evaluate = changes.pop('EVAL', False)
    return Node(MODEL=Node({**model, **changes}), SEED=0, EVAL=evaluate)


def test_load_from_config_logs_and_guards_evaluation(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger('common'), 'propagate', True)     # a run turns it off
    with caplog.at_level('INFO', 'common.weights.load'):
        report = load_from_config(vit(), make_config(EVAL=True))
    assert isinstance(report, LoadReport) and 'loaded 44 of 44 tensors' in caplog.text
    other_classes = vit(num_classes=9)
    assert not load_from_config(other_classes, make_config()).complete
    with pytest.raises(UserError, match='not\\s+from the file: classifier.weight'):
        load_from_config(other_classes, make_config(EVAL=True))
    load_from_config(other_classes, make_config(EVAL=True, ALLOW_MISSING=True))


def test_position_resize_is_by_config():
    models = {}
    for method in ('source', 'timm', 'google', 'bicubic'):
        models[method] = vit(96)
        load_pretrained(models[method], GOOGLE, position_resize=method)
    values = {method: model.position_embedding.numpy() for method, model in models.items()}
    np.testing.assert_array_equal(values['source'], values['google'])
    assert len({value.tobytes() for value in values.values()}) == 3


@pytest.mark.parametrize('method', METHODS)
def test_resize_keeps_what_it_must(method):
    generator = np.random.default_rng(0)
    embedding = generator.standard_normal((1, 1 + 6, 4)).astype('f4')
    same = resize_positions(embedding, 1, (2, 3), (2, 3), method)
    if method != 'bicubic_offset':    # whose grid is larger by 0.1; an equal one is not resized
        np.testing.assert_allclose(same, embedding, atol=1e-7)
    larger = resize_positions(embedding, 1, (2, 3), (5, 7), method)
    assert larger.shape == (1, 36, 4) and larger.dtype == np.float32
    np.testing.assert_array_equal(larger[0, 0], embedding[0, 0])
    # Resizing transposed patches is transposing resized ones.
    patches = embedding[:, 1:].reshape(1, 2, 3, 4)
    flipped = resize_positions(patches.transpose(0, 2, 1, 3).reshape(1, 6, 4), 0, (3, 2), (7, 5),
                               method).reshape(7, 5, 4)
    np.testing.assert_allclose(flipped.transpose(1, 0, 2), larger[0, 1:].reshape(5, 7, 4),
                               atol=1e-6)
    ones = resize_positions(np.ones((1, 6, 4), 'f4'), 0, (2, 3), (5, 2), method)
    np.testing.assert_allclose(ones, 1, atol=1e-6)


def test_resize_matrices_against_stored_values():
    """4 -> 3 and 3 -> 5, from torch.nn.functional.interpolate and scipy.ndimage.zoom in float64."""
    with open(os.path.join(WEIGHTS, 'resize_matrices.json'), encoding='utf-8') as file:
        stored = json.load(file)
    for case in stored:
        matrix = METHODS[case['method']](case['old'], case['new'])
        np.testing.assert_allclose(matrix, case['matrix'], rtol=0, atol=1e-6)
    assert {case['method'] for case in stored} == set(METHODS)


def test_a_path_may_contain_anything(tmp_path):
    path = tmp_path / 'größe 100% (1).bin'
    shutil.copy(TIMM, path)
    assert load_pretrained(vit(), path).format == 'timm'


def test_paddleclas_small_is_refused(tmp_path):
    tree = paddle.load(fixture('vit/paddleclas_pdparams', 'ViT_tiny_fixture_pretrained.pdparams'))
    path = str(tmp_path / 'a.pdparams')
    paddle.save({name: value for name, value in tree.items() if 'qkv.bias' not in name}, path)
    with pytest.raises(UserError, match="a.pdparams: PaddleClas's ViT_small_patch16_224"):
        load_pretrained(vit(qkv_bias=False), path)
