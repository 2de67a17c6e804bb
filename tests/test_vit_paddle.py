"""The package for Python: models by name, a classifier from a checkpoint, from any folder."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import paddle
import pytest
from PIL import Image, ImageOps

from common.data.images import ImageError
from common.errors import UserError
from tests.support.data_folders import write_turned
from tests.support.foreign_weights import WEIGHTS
from tests.support.paths import ROOT
from tests.support.picture_folders import make_digit_folders
from tests.support.trained_digits import fixture_path
from vit_paddle import Classifier, create_model, list_models


def test_models_by_name():
    names = list_models()
    assert {'vit_base_patch16_224', 't2t_vit_14', 'vit_digits'} <= set(names)
    assert names == sorted(names) and list_models('t2t_vit_t_*') == [
        't2t_vit_t_14', 't2t_vit_t_19', 't2t_vit_t_24']
    released = list_models(pretrained=True)
    assert {'vit_base_patch16_224', 't2t_vit_14'} <= set(released)
    assert 'vit_digits' not in released


@pytest.mark.parametrize('name', ['vit_tiny_patch16_224', 't2t_vit_7'])
def test_a_new_model(name):
    model = create_model(name, num_classes=5, image_size=32, depth=1)
    model.eval()
    assert model(paddle.zeros([2, 3, 32, 32])).shape == [2, 5]


def test_weights_of_a_file_with_a_head_for_other_classes():
    model = create_model('vit_digits', pretrained=fixture_path('vit'), num_classes=3,
                         image_size=16, **_sizes())
    assert model.classifier.weight.shape[-1] == 3
    own = paddle.load(fixture_path('vit'))['model']
    name = 'encoder.layers.0.attn.qkv.weight'
    np.testing.assert_array_equal(model.state_dict()[name].numpy(), np.asarray(own[name]))


def _sizes():
    from common.weights.load import open_weights
    options = open_weights(fixture_path('vit'), None).options
    return {key: options[f'MODEL.{key.upper()}'] for key in (
        'embed_dim', 'depth', 'num_heads', 'patch_size', 'mlp_ratio')}


def test_wrong_names_and_options():
    for arguments, said in (({'name': 'vit_base_patch16_225'}, 'Did you mean'),
                            ({'name': 'vit_digits', 'pretrained': True}, 'no released weights'),
                            ({'name': 'vit_digits', 'dropath': 0.1}, 'DROPPATH')):
        with pytest.raises(UserError, match=said):
            create_model(**arguments)


@pytest.mark.parametrize('name', ['vit', 't2t'])
def test_a_classifier(name, tmp_path):
    folder = make_digit_folders(tmp_path, {0: 2, 7: 2})
    classify = Classifier(fixture_path(name), device='cpu')
    (label, probability), second, *_ = found = classify(f'{folder}/seven/0.png')
    assert label == '7' and probability > second.probability and len(found) == 5
    assert classify.class_names == [str(digit) for digit in range(10)]
    with Image.open(f'{folder}/seven/0.png') as image:
        assert classify(image) == classify(np.asarray(image)) == found
    many = classify([f'{folder}/zero/0.png', f'{folder}/seven/0.png'] * 9, topk=1)
    assert [predictions[0].label for predictions in many] == ['0', '7'] * 9
    assert all(len(predictions) == 1 for predictions in many)
    with pytest.raises(ImageError, match='nothing.png'):
        classify(f'{folder}/nothing.png')
    cut = tmp_path / 'cut.png'
    cut.write_bytes(Path(f'{folder}/seven/0.png').read_bytes()[:-60])
    with Image.open(cut) as image, pytest.raises(ImageError, match=r'cut\.png cannot be read: .'):
        classify(image)


@pytest.mark.parametrize('upright', [False, True])
def test_a_photograph_is_turned_alike_as_a_file_and_as_an_image(tmp_path, upright):
    folder = make_digit_folders(tmp_path, {7: 1})
    path = f'{tmp_path}/phone.jpg'
    with Image.open(f'{folder}/seven/0.png') as image:
        write_turned(image, path, 6)
    classify = Classifier(fixture_path('vit'), device='cpu')
    classify.preprocessing = replace(classify.preprocessing, exif_orientation=upright)
    with Image.open(path) as image:
        stored = np.asarray(image)
        meant = np.asarray(ImageOps.exif_transpose(image))
        assert classify(path) == classify(image) == classify(meant if upright else stored)
        assert classify(image.convert('L')) == classify(path)
    assert classify(meant) != classify(stored)


def test_a_classifier_of_weights_of_others():
    classify = Classifier(f'{WEIGHTS}/vit/hf_vit', device='cpu')
    assert len(classify(np.zeros([40, 50, 3], np.uint8), topk=3)) == 3


@pytest.mark.runs
def test_it_is_imported_from_any_folder(tmp_path):
    """As after `pip install -e .`, which puts the root on the import path."""
    program = ('from vit_paddle import Classifier, list_models; import sys; '
               'assert "vit_digits" in list_models(); print(Classifier(sys.argv[1])(sys.argv[2]))')
    folder = make_digit_folders(tmp_path, {7: 1})
    done = subprocess.run([sys.executable, '-c', program, fixture_path('vit'),
                           f'{folder}/seven/0.png'], cwd=tmp_path, capture_output=True, text=True,
                          env={**os.environ, 'PYTHONPATH': str(ROOT)}, check=True)
    assert "Prediction(label='7'" in done.stdout
