"""average_checkpoints.py: the mean of weights, usable as the checkpoints are."""

import numpy as np
import paddle
import pytest

from common.deploy import predict
from common.tools import average_checkpoints
from common.tools.average_checkpoints import RECORD
from common.weights.containers import open_container
from tests.support.picture_folders import make_digit_folders
from tests.support.trained_digits import fixture_path
from ViT.project import PROJECT


def write_changed(path, change=lambda name, array: array, **record):
    """Write the fixture with other weights; return {name: array}."""
    tree = open_container(fixture_path('vit')).tree
    weights = {name: change(name, np.array(array)) for name, array in tree['model'].items()
               if isinstance(array, np.ndarray)}
    paddle.save({'model': weights, **{key: tree[key] for key in RECORD}, **record}, str(path))
    return weights


def run(*arguments):
    return average_checkpoints.main(PROJECT, [str(argument) for argument in arguments])


def test_the_mean_of_three(tmp_path, capsys):
    paths = [tmp_path / f'{number}.pdparams' for number in range(3)]
    rng = np.random.default_rng(0)
    parts = [write_changed(path, lambda name, array: array + 1e-3 * rng.standard_normal(
        array.shape).astype('float32')) for path in paths]
    assert run(*paths, '-o', tmp_path / 'soup.pdparams') == 0
    tree = open_container(str(tmp_path / 'soup.pdparams')).tree
    assert set(tree['model']) == set(parts[0])
    for name, array in tree['model'].items():
        expected = np.mean([part[name].astype(np.float64) for part in parts], axis=0)
        np.testing.assert_allclose(array, expected, rtol=1e-6, atol=1e-9)
    # Its record goes with it: it predicts by itself.
    folder = make_digit_folders(tmp_path / 'data', {7: 1})
    capsys.readouterr()
    assert predict.main(PROJECT, [f'{folder}/seven/0.png', '-device=cpu', '-topk=1',
                                  f'-pretrained={tmp_path}/soup.pdparams', '-format=csv']) == 0
    assert ',1,7,7,' in capsys.readouterr().out


@pytest.mark.parametrize('change, record, said', [
    (lambda name, array: array[..., :-1] if name == 'classifier.bias' else array, {},
     'classifier.bias'),
    (lambda name, array: array, {'class_names': list('9876543210')}, 'other classes')])
def test_other_models_and_other_classes_are_refused(change, record, said, tmp_path, capsys):
    write_changed(tmp_path / 'other.pdparams', change, **record)
    assert run(fixture_path('vit'), tmp_path / 'other.pdparams', '-o',
               tmp_path / 'soup.pdparams') == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / 'soup.pdparams').exists()


def test_wrong_input(tmp_path, capsys):
    for arguments, said in (
            ([fixture_path('vit'), '-o', tmp_path / 'a.pdparams'], 'two checkpoints'),
            ([fixture_path('vit')] * 2 + ['-o', tmp_path / 'a.bin'], '.pdparams'),
            ([fixture_path('vit')] * 2, '-o')):
        assert run(*arguments) == 2
        assert said in capsys.readouterr().err
    (tmp_path / 'soup.pdparams').write_text('')
    assert run(*[fixture_path('vit')] * 2, '-o', tmp_path / 'soup.pdparams') == 2
    assert run(*[fixture_path('vit')] * 2, '-o', tmp_path / 'soup.pdparams', '-overwrite') == 0
