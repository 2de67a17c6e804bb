"""No script writes over what it reads, over a file that is not its own, or through a link."""

import os
import re
import shutil
from pathlib import Path

import pytest

from common.deploy import export, features, predict, visualize
from common.deploy.engine import CHOICES_FILE
from common.tools import average_checkpoints, convert_weights, plot
from tests.support.colours import make_colours
from tests.support.trained_digits import fixture_path, load_fixture
from ViT.project import PROJECT

CPU = '-device=cpu'


@pytest.fixture
def weights(tmp_path):
    """Return a copy of weights; a hard link and a symbolic link lead to it."""
    path = shutil.copy(fixture_path('vit'), tmp_path / 'w.pdparams')
    os.link(path, tmp_path / 'hard')
    os.symlink(path, tmp_path / 'soft')
    return path


@pytest.fixture
def picture(tmp_path):
    make_colours(tmp_path, {'one': 'red'}, ('mine',), each=1, ending='.jpg')
    return tmp_path / 'mine/one/0.jpg'


def read_all(folder):
    return {path: path.read_bytes() for path in Path(folder).rglob('*')
            if path.is_file() and path.name != CHOICES_FILE}


def refuses(main, arguments, folder, capsys, *said):
    """Whether a command is refused with these words, and changes nothing below a folder."""
    before = read_all(folder)
    assert main(*([PROJECT] if main is not plot.main else []), [*map(str, arguments)]) == 2
    message = capsys.readouterr().err
    for text in said:
        assert text in message
    assert read_all(folder) == before


@pytest.mark.parametrize('name', ['hard', 'soft', '../{0}/hard'])
def test_predictions_are_not_written_over_what_was_read(weights, picture, tmp_path, capsys, name):
    output = tmp_path / name.format(tmp_path.name)
    (tmp_path / 'labels.txt').write_text('\n'.join('abcdefghij'))
    os.link(tmp_path / 'labels.txt', tmp_path / 'names')
    base = tmp_path / 'base.txt'
    base.write_text('MODEL: {NAME: x}\n')
    (tmp_path / 'c.yaml').write_text(
        re.sub("BASE:.*(\n-.*)?", f'BASE: [{base}]', load_fixture('vit')[1].config.dump()))
    flags = [picture, f'-pretrained={weights}', CPU]
    refuses(predict.main, [*flags, f'-output={output}'], tmp_path, capsys,
            'is read by this command, and would be written over')
    refuses(predict.main, [*flags, f'-labels={tmp_path}/labels.txt', f'-output={tmp_path}/names'],
            tmp_path, capsys, 'names is read by this command')
    refuses(predict.main, [*flags, f'-cfg={tmp_path}/c.yaml', f'-output={base}'],
            tmp_path, capsys, 'base.txt is read by this command')


@pytest.mark.parametrize('ending', ['.pdparams', '.NPZ', '.safetensors', '.yaml', '.zip', '.onnx'])
def test_predictions_are_not_written_over_other_weights(picture, tmp_path, capsys, ending):
    (tmp_path / f'other{ending}').write_bytes(b'precious')
    refuses(predict.main, [picture, f'-pretrained={fixture_path("vit")}', CPU,
                           f'-output={tmp_path}/other{ending}'], tmp_path, capsys,
            'holds something else. Take .csv')


@pytest.mark.runs
def test_predictions_are_not_written_over_the_exported_model(picture, tmp_path, capsys):
    folder = tmp_path / 'exported'
    assert export.main(PROJECT, [f'-pretrained={fixture_path("vit")}', f'-output={folder}']) == 0
    capsys.readouterr()
    for name in ('preprocessing.json', 'files.json'):
        refuses(predict.main, [picture, f'-model={folder}', f'-output={folder}/{name}'],
                tmp_path, capsys, f'{name} is read by this command')


def test_features_are_not_written_over_the_weights(picture, tmp_path, capsys):
    arrays = tmp_path / 'w.npz'
    (tmp_path / 'sub').symlink_to(tmp_path)
    shutil.copy(fixture_path('vit'), arrays)        # what it is, its content says
    refuses(features.main, [picture, f'-pretrained={arrays}', CPU,
                            f'-output={tmp_path}/sub/w.npz'], tmp_path, capsys, 'w.npz is read by')


def test_weights_are_not_written_over_the_weights_they_are_made_of(weights, tmp_path, capsys):
    shutil.copy(weights, tmp_path / 'other.pdparams')
    os.symlink(weights, tmp_path / 'soft.pdparams')
    refuses(average_checkpoints.main, [weights, tmp_path / 'other.pdparams', '-overwrite', '-o',
                                       tmp_path / 'soft.pdparams'], tmp_path, capsys,
            'soft.pdparams is read by this command')
    refuses(convert_weights.main, [weights, '-overwrite', '-o', tmp_path / 'soft.pdparams'],
            tmp_path, capsys, 'soft.pdparams is read by this command')


def test_curves_are_not_written_over_the_metrics(tmp_path, capsys):
    (tmp_path / 'metrics.jsonl').write_text('{"event": "train", "update": 1, "loss": 2.0}\n')
    os.symlink(tmp_path / 'metrics.jsonl', tmp_path / 'curves.png')
    refuses(plot.main, [tmp_path, '-o', tmp_path / 'curves.png'], tmp_path, capsys,
            'curves.png is read by this command')


def test_an_export_is_not_written_over_files_of_something_else(tmp_path, capsys):
    shutil.copy(fixture_path('vit'), tmp_path / 'model.bin')
    refuses(export.main, [f'-pretrained={tmp_path}/model.bin', f'-output={tmp_path}'], tmp_path,
            capsys, 'holds model.bin and is no exported model')


@pytest.mark.parametrize('main', [predict.main, visualize.main])
def test_pictures_of_ours_are_written_over_and_no_others(picture, tmp_path, capsys, main):
    out = tmp_path / 'out'
    flag, name = ('-save_dir', '0.jpg') if main is predict.main else ('-output', '0.attention.png')
    arguments = [str(picture), f'-pretrained={fixture_path("vit")}', CPU, f'{flag}={out}']
    assert main(PROJECT, arguments) == 0 and main(PROJECT, arguments) == 0
    assert sorted(os.listdir(out)) == [name]
    ours = (out / name).read_bytes()
    capsys.readouterr()
    for make in (lambda: shutil.copy(picture, out / name),      # of the user
                 lambda: os.symlink(picture, out / name),
                 lambda: os.symlink(tmp_path / 'nowhere', out / name)):
        os.remove(out / name)
        make()
        refuses(main, arguments, tmp_path, capsys, f'{name} would be written over')
    os.remove(out / name)
    (out / f'.{name}.writing').symlink_to(picture)              # of a process that was killed
    before = picture.read_bytes()
    assert main(PROJECT, arguments) == 0
    assert (out / name).read_bytes() == ours and picture.read_bytes() == before


def test_inputs_that_are_outputs_of_before_are_kept(picture, tmp_path, capsys):
    flags = [f'-pretrained={fixture_path("vit")}', CPU]
    assert predict.main(PROJECT, [str(picture), *flags, f'-save_dir={tmp_path}/a']) == 0
    (tmp_path / 'b').mkdir()
    os.link(tmp_path / 'a/0.jpg', tmp_path / 'b/0.jpg')
    capsys.readouterr()
    refuses(predict.main, [tmp_path / 'a', *flags, f'-save_dir={tmp_path}/b'], tmp_path, capsys,
            'which is one of the pictures')
