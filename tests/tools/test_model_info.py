"""Parameters and MACs of the ViT configs: the reference's exact counts, the published table."""

import glob
import json
import os

import pytest

from common.tools.model_info import main, measure_config, measure_model
from tests.support.paths import FIXTURES, ROOT
from ViT.config import get_config
from ViT.project import PROJECT
from ViT.vit import build_vit

FOLDER = os.path.join(ROOT, 'ViT')
with open(os.path.join(FIXTURES, 'vit_full/index.json'), encoding='utf-8') as file:
    INDEX = json.load(file)['configs']

# PaddleViT's table: millions of parameters, GFLOPs (it counts a multiply-accumulate as one).
PADDLEVIT = {
    'vit_tiny_patch16_224': (5.7, 1.1), 'vit_tiny_patch16_384': (5.7, 3.3),
    'vit_small_patch32_224': (22.9, 1.1), 'vit_small_patch32_384': (22.9, 3.3),
    'vit_small_patch16_224': (22.0, 4.3), 'vit_small_patch16_384': (22.0, 12.7),
    'vit_base_patch32_224': (88.2, 4.4), 'vit_base_patch32_384': (88.2, 12.7),
    'vit_base_patch16_224': (86.4, 17.0), 'vit_base_patch16_384': (86.4, 49.8),
    'vit_large_patch32_384': (306.5, 44.4), 'vit_large_patch16_224': (304.1, 59.9),
    'vit_large_patch16_384': (304.1, 175.9),
}


def config_path(name):
    return os.path.join(FOLDER, 'configs', f'{name}.yaml')


@pytest.mark.parametrize('name', INDEX)
def test_counts_are_exact(name):
    info = measure_config(get_config, build_vit, config_path(name))
    expected = INDEX[name]
    assert info.name == name
    assert info.params == expected['params']
    assert info.layer_params == expected['params_without_cls_and_pos']
    assert info.macs == expected['macs_conv_linear']
    assert info.macs_with_attention == expected['macs_conv_linear_attention']
    if name in PADDLEVIT:
        millions, billions = PADDLEVIT[name]
        assert info.layer_params / 1e6 == pytest.approx(millions, abs=0.05)
        assert info.macs / 1e9 == pytest.approx(billions, rel=0.05)


@pytest.mark.parametrize('opts', [
    [], ['MODEL.POOL', 'avg', 'MODEL.CLASS_TOKEN', 'False', 'MODEL.ATTN_HEAD_SIZE', '24',
         'MODEL.POSITION_EMBEDDING', 'sincos2d'],
    ['MODEL.HYBRID', '[1]', 'MODEL.DEPTH', '5'],
])
def test_two_depths_give_what_the_whole_model_has(opts):
    def get(path, opts=(), given=opts):
        return get_config(path, opts=[*given, *opts])

    info = measure_config(get, build_vit, config_path('vit_digits'))
    model = build_vit(get(config_path('vit_digits')))
    assert tuple(info[2:]) == measure_model(model, 3, 32)
    assert info.params == sum(int(value.size) for value in model.state_dict().values())


def test_hybrid_counts():
    """R50+ViT-B/16: vit_jax's R50 stem of stages 3, 4, 9 by formula, and ViT-B without patches."""
    def conv(channels_in, channels, kernel, size):
        params = channels_in * channels * kernel ** 2
        return params, params * size ** 2

    parts = [conv(3, 64, 7, 112)]
    norms = 64
    channels_in, size = 64, 56
    for stage, units in enumerate((3, 4, 9)):
        channels = 64 * 2 ** stage
        for unit in range(units):
            out_size = size // 2 if stage and not unit else size
            parts += [conv(channels_in, channels, 1, size), conv(channels, channels, 3, out_size),
                      conv(channels, 4 * channels, 1, out_size)]
            norms += 6 * channels
            if not unit:
                parts += [conv(channels_in, 4 * channels, 1, out_size)]
                norms += 4 * channels
            channels_in, size = 4 * channels, out_size
    base = INDEX['vit_base_patch16_224']
    info = measure_config(get_config, build_vit, config_path('vit_base_r50_patch16_224'))
    patches = 1024 * 768 - 3 * 16 * 16 * 768        # 1x1 instead of 16x16 patches
    assert info.params == (base['params'] + patches + 2 * norms
                           + sum(params for params, _ in parts))
    assert info.macs == (base['macs_conv_linear'] + 196 * patches
                         + sum(macs for _, macs in parts))


def run(capsys, *argv):
    code = main(PROJECT, list(argv))
    return code, *capsys.readouterr()


def test_one_config_is_printed(capsys):
    code, out, _ = run(capsys, '-cfg', 'configs/vit_digits.yaml')
    header, line = out.splitlines()
    assert code == 0 and header.startswith('model')
    assert line.split() == ['vit_digits', '32', '214,218', '213,066', '0.004', '0.004']


def test_a_missing_config_is_the_users_mistake(capsys):
    code, out, error = run(capsys, '--cfg=configs/vit_nothing.yaml')
    assert code == 2 and out == ''
    assert 'Cannot read the config file' in error


def test_the_table_has_every_config(capsys, monkeypatch):
    measured = []
    monkeypatch.setattr('common.tools.model_info.measure_config', lambda get, build, path: (
        measured.append(os.path.basename(path)[:-5]), measure_config(get, build, config_path(
            'vit_digits')))[1])
    code, out, _ = run(capsys)
    names = [name[:-5] for name in os.listdir(os.path.join(FOLDER, 'configs'))
             if name.endswith('.yaml') and not name.startswith('_')]
    assert code == 0 and measured == sorted(names)
    assert len(out.splitlines()) == 1 + len(names)


def test_every_config_is_named_after_its_file_and_loads():
    paths = glob.glob(os.path.join(FOLDER, 'configs', '**', '[!_]*.yaml'), recursive=True)
    assert len(paths) > 30
    for path in paths:
        assert f'{get_config(path).MODEL.NAME}.yaml' == os.path.basename(path)


def test_models_of_the_published_table_evaluate_as_it_says():
    for name in INDEX:
        config = get_config(config_path(name))
        size = 384 if name.endswith('384') else 224
        assert (config.DATA.IMAGE_SIZE, config.DATA.CROP_PCT) in ((384, 1.0), (224, 0.875))
        assert size == config.DATA.IMAGE_SIZE
        assert (config.DATA.INTERPOLATION, config.MODEL.NUM_CLASSES) == ('bicubic', 1000)


def test_imagenet21k_models_have_its_classes_and_the_originals_pre_logits():
    names = [name for name in os.listdir(os.path.join(FOLDER, 'configs')) if '_in21k' in name]
    for name in names:
        if not name.startswith('_'):
            model = get_config(os.path.join(FOLDER, 'configs', name)).MODEL
            assert model.NUM_CLASSES == 21843
            pre_logits = model.EMBED_DIM if 'orig' in name else None
            assert pre_logits == model.REPRESENTATION_SIZE
    assert len(names) == 6 + 6 + 2
