"""-pretrained on the command line: every foreign checkpoint, through the main scripts."""

import os

import numpy as np
import paddle
import pytest

from common.run.launch import run_single
from common.run.validation import Validator
from T2T_ViT.project import PROJECT as T2T_PROJECT
from tests.support.data_folders import make_folders
from tests.support.foreign_weights import CASES, WEIGHTS, case_name
from ViT.project import PROJECT as VIT_PROJECT

VIT = ['MODEL.PATCH_SIZE', 16, 'MODEL.EMBED_DIM', 48, 'MODEL.DEPTH', 3, 'MODEL.NUM_HEADS', 4]
T2T = ['MODEL.EMBED_DIM', 64, 'MODEL.DEPTH', 2, 'MODEL.NUM_HEADS', 2, 'MODEL.MLP_RATIO', 2.0]
# By the name of the case's model builder: (project, image size, options).
MODELS = {
    'vit': (VIT_PROJECT, 64, VIT),
    'vit_96': (VIT_PROJECT, 96, VIT),
    'in21k': (VIT_PROJECT, 64, [*VIT, 'MODEL.REPRESENTATION_SIZE', 48]),
    'hybrid': (VIT_PROJECT, 64, [*VIT, 'MODEL.PATCH_SIZE', 8, 'MODEL.HYBRID', '[2,1]',
                                 'MODEL.HYBRID_WIDTH', 32]),
    't2t': (T2T_PROJECT, 64, T2T),
    't2t_96': (T2T_PROJECT, 96, T2T),
    'transformer_tokens': (T2T_PROJECT, 64, [*T2T, 'MODEL.TOKEN_TYPE', 'transformer']),
    'transformer_tokens_96': (T2T_PROJECT, 96, [*T2T, 'MODEL.TOKEN_TYPE', 'transformer']),
}
OPTIONS = {'numerics': 'MODEL.NUMERICS', 'use_ema': 'MODEL.PRETRAINED_EMA'}


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    return make_folders(tmp_path_factory.mktemp('pictures'), per_class=1)


@pytest.mark.parametrize('case', CASES, ids=case_name)
def test_evaluation_has_the_sources_logits(case, pictures, tmp_path, monkeypatch):
    folder, file, _, build, options, expected_file, array = case
    project, image_size, model_options = MODELS[build.__name__]
    expected = np.load(os.path.join(WEIGHTS, folder, f'{expected_file}.npz'))
    found = []

    def validate(validator):
        """Compute the fixture's logits where the command evaluates the data."""
        validator.model.eval()
        found.append(validator.model(paddle.to_tensor(expected['x'])).numpy())

    monkeypatch.setattr(Validator, 'validate', validate)
    monkeypatch.setattr(Validator, 'report', lambda *arguments: None)
    for name, value in options.items():
        model_options = [*model_options, OPTIONS[name], value]
    code = run_single(project, [
        '-eval', f'-pretrained={os.path.join(WEIGHTS, folder, file)}', '-device=cpu',
        '-dataset=imagefolder', f'-data_path={pictures}', f'-image_size={image_size}',
        f'-num_classes={expected[array].shape[1]}', f'-output={tmp_path}',
        '-opts', *map(str, model_options)])
    assert code == 0
    assert np.abs(found[0] - expected[array]).max() <= 2e-5 * np.abs(expected[array]).max()


def test_evaluation_refuses_weights_that_do_not_fill_the_model(pictures, tmp_path, capsys):
    arguments = [
        '-eval', f'-pretrained={WEIGHTS}/vit/timm_pth/model.pth', '-device=cpu', '-num_workers=0',
        '-dataset=imagefolder', f'-data_path={pictures}', '-image_size=64', '-num_classes=3',
        f'-output={tmp_path}', '-opts', *map(str, VIT)]
    assert run_single(VIT_PROJECT, arguments) == 2
    message = capsys.readouterr().err
    assert 'classifier' in message and 'MODEL.ALLOW_MISSING' in message and 'Trace' not in message
    assert os.listdir(tmp_path) == []
    assert run_single(VIT_PROJECT, [*arguments, 'MODEL.ALLOW_MISSING', 'True']) == 0
