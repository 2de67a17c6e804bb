"""check_data on folders with every fault, its exit codes, and the list-file writer."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from common.data.datasets import build_dataset, open_dataset
from common.tools.check_data import main
from tests.support.data_folders import make_config, make_folders, make_image, make_lists
from tests.support.paths import ROOT
from tests.support.sources import write_csv, write_zip
from ViT.project import PROJECT


def run(*arguments):
    return main(PROJECT, ['-num_workers=1', *arguments])


def run_folder(path, *arguments):
    return run('-dataset=imagefolder', f'-data_path={path}', *arguments)


def list_folders(root, part, offset=0):
    return ''.join(
        f'{part}/{name}/{number}.jpg {label + offset}\n'
        for label, name in enumerate(('cat', 'dog', 'emu')) for number in range(4))


def test_sound_folder(tmp_path, capsys):
    make_image(str(tmp_path / 'train' / 'dog' / '9.jpg'))
    assert run_folder(make_folders(tmp_path)) == 0
    text = capsys.readouterr().out
    assert 'imagefolder: 13 training images, 3 classes' in text
    assert 'imagefolder: 12 validation images, 3 classes' in text
    assert '  cat ################################         4\n' in text
    assert '  dog ######################################## 5\n' in text
    assert 'images a class: 4 to 5, median 4' in text and 'No problem found.' in text


@pytest.mark.parametrize('fast', [[], ['-fast']])
def test_missing_and_unreadable_images_are_all_found(tmp_path, capsys, fast):
    path = make_folders(tmp_path)
    make_lists(path, train='# header\n' + list_folders(path, 'train'),
               val=list_folders(path, 'val'))
    os.remove(tmp_path / 'train' / 'cat' / '0.jpg')
    os.truncate(tmp_path / 'train' / 'emu' / '3.jpg', 0)
    (tmp_path / 'val' / 'dog' / '1.jpg').write_text('text')
    cut = tmp_path / 'val' / 'dog' / '2.jpg'
    os.truncate(cut, os.path.getsize(cut) - 50)
    assert run_folder(path, *fast) == 1
    text = capsys.readouterr().out
    assert 'cat/0.jpg: no such image file.' in text and 'train_list.txt, line 2)' in text
    assert 'emu/3.jpg: the file is empty.' in text and 'train_list.txt, line 13)' in text
    assert 'dog/1.jpg: not an image' in text and 'val_list.txt, line 6)' in text
    assert ('dog/2.jpg: damaged image' in text) == (not fast)   # its header is whole
    assert f'{3 if fast else 4} problems found.' in text


@pytest.mark.runs
def test_what_is_not_used_is_said(tmp_path):
    """As a program of its own, whose log Paddle's import must not take away."""
    command = [sys.executable, 'check_data.py', '-dataset=imagefolder',
               f'-data_path={make_folders(tmp_path)}', '-opts', 'DATA.VAL_FRACTION', '0.2']
    result = subprocess.run(command, cwd=os.path.join(ROOT, 'ViT'), capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (
        0, 'Not used: DATA.VAL_FRACTION 0.2 (the data has validation images of its own)\n')


def test_class_maps_that_differ_between_lists(tmp_path, capsys):
    path = make_folders(tmp_path)
    make_lists(path, train=list_folders(path, 'train'), val=list_folders(path, 'val', offset=1))
    assert run_folder(path) == 1
    text = capsys.readouterr().out
    assert "folders 'cat' have label 0 in the training list and 1 in the validation list" in text
    assert '1 classes of val have no training image: 3' in text


def test_images_in_both_lists_or_twice(tmp_path, capsys):
    path = make_folders(tmp_path)
    lines = list_folders(path, 'train')
    make_lists(path, train=lines + 'train/cat/2.jpg 0\n', val='train/dog/0.jpg 1\n')
    assert run_folder(path) == 1
    text = capsys.readouterr().out
    assert '1 images are in both lists, such as train/dog/0.jpg' in text
    assert '1 images are in the training list more than once, such as train/cat/2.jpg' in text


def test_empty_class(tmp_path, capsys):
    path = make_folders(tmp_path)
    for name in os.listdir(tmp_path / 'train' / 'dog'):
        os.remove(tmp_path / 'train' / 'dog' / name)
    assert run_folder(path) == 1
    assert '1 classes have no training image: 1' in capsys.readouterr().out


def test_a_part_without_images(tmp_path, capsys):
    for name in ('cat', 'dog'):
        make_image(str(tmp_path / name / '0.jpg'))
    assert run_folder(tmp_path, '-opts', 'DATA.VAL_FRACTION', '0.2') == 1
    text = capsys.readouterr().out
    assert 'images a class: 0 to 0, median 0' in text
    assert '  val has no images\n1 problems found.' in text


def test_many_classes_are_shown_by_how_many_images_they_have(tmp_path, capsys):
    for name in range(25):
        for number in range(2 if name < 20 else 1):
            make_image(str(tmp_path / f'c{name:02}' / f'{number}.png'), size=(4, 4))
    assert run_folder(tmp_path, '-opts', 'DATA.VAL_FRACTION', '0.01') == 0
    assert '######## 25' in capsys.readouterr().out


@pytest.mark.parametrize('arguments, message', [
    (['-dataset=imagefolder', '-data_path=/none'], 'No such folder: /none'),
    (['-dataset=imagefoldr'], 'Did you mean imagefolder'),
    (['-dataset=digits', '-nonsense'], 'nrecognized arguments'),
    (['-dataset=digits', '-opts', 'DATA.NONSENSE', '1'], 'unknown key'),
    (['-cfg=/none.yaml'], 'Cannot read the config file'),
    (['-dataset=digits', '-write_lists'], 'not for digits'),
    (['-dataset=digits', '-num_classes=5'], 'more than the model has, 5'),
])
def test_wrong_input_is_exit_code_2(arguments, message, capsys):
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err and len(captured.err.strip().splitlines()) <= 2


def test_different_class_folders_are_exit_code_2(tmp_path, capsys):
    path = make_folders(tmp_path)
    shutil.rmtree(tmp_path / 'val' / 'dog')
    assert run_folder(path) == 2
    assert 'only in train: dog' in capsys.readouterr().err


def test_embedded_digits(capsys):
    assert run('-dataset', 'digits') == 0
    assert 'digits: 1,347 training images' in capsys.readouterr().out


def test_lists_are_written_and_used(tmp_path, capsys):
    path = make_folders(tmp_path, classes=('a b', 'dog'))
    config = make_config(DATA__DATA_PATH=path)
    before = [build_dataset(config, is_train, None) for is_train in (True, False)]
    assert run_folder(path, '-write_lists') == 0
    assert (tmp_path / 'train_list.txt').read_text().splitlines()[3:5] == [
        'train/a b/3.jpg 0', 'train/dog/0.jpg 1']
    assert (tmp_path / 'labels.txt').read_text() == 'a b\ndog\n'
    assert 'val_list.txt: 8 images' in capsys.readouterr().out
    after = [build_dataset(config, is_train, None) for is_train in (True, False)]
    for old, new in zip(before, after):
        assert np.array_equal(old.labels, new.labels)
        assert [old.describe_sample(i) for i in range(8)] == [
            new.describe_sample(i) for i in range(8)]
    assert run_folder(path, '-write_lists') == 2
    assert 'exists already' in capsys.readouterr().err


def test_lists_hold_every_name_of_a_class(tmp_path, capsys):
    names = [' a', 'a', 'a ', '#b', 'caf\udce9', 'para\u2029', 'tab\x0b', 'x\x85']
    path = make_folders(tmp_path, classes=names)
    before = open_dataset(make_config(DATA__DATA_PATH=path), True)
    assert run_folder(path, '-write_lists') == 0, capsys.readouterr().err
    after = open_dataset(make_config(DATA__DATA_PATH=path), True)
    assert before.class_names == after.class_names == sorted(names)
    for old, new in zip(range(len(before)), range(len(after))):
        assert os.path.samefile(before.reader.path(old), after.reader.path(new))
    assert np.array_equal(before.labels, after.labels)


@pytest.mark.parametrize('name', ['labels.txt', 'train_list.txt', 'val_list.txt'])
@pytest.mark.parametrize('kind', ['file', 'link', 'empty link'])
def test_what_is_there_is_not_written_over(tmp_path, capsys, name, kind):
    path = make_folders(tmp_path / 'data')
    precious = tmp_path / 'best.pdparams'
    precious.write_text('precious')
    if kind == 'file':
        shutil.copy(precious, tmp_path / 'data' / name)
    else:
        (tmp_path / 'data' / name).symlink_to(precious if kind == 'link' else tmp_path / 'nowhere')
    before = sorted(os.listdir(path))
    assert run_folder(path, '-write_lists') == 2
    assert f'{name} exists already. Move it away' in capsys.readouterr().err
    assert precious.read_text() == 'precious' and sorted(os.listdir(path)) == before
    assert sorted(os.listdir(tmp_path)) == ['best.pdparams', 'data']


def test_lists_of_a_table_and_none_of_an_archive(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv('VIT_CACHE', str(tmp_path / 'cache'))
    root = make_folders(tmp_path / 'data')
    archive = write_zip(root, tmp_path / 'x.zip')
    table = write_csv(root, tmp_path / 'data' / 'table.csv')
    assert run('-dataset=csv', f'-data_path={table}', '-write_lists') == 0
    assert (tmp_path / 'data' / 'val_list.txt').read_text().splitlines()[4] == 'val/dog/0.jpg 1'
    assert (tmp_path / 'data' / 'labels.txt').read_text() == 'cat\ndog\nemu\n'
    assert run_folder(root) == 0 and '12 training images, 3 classes' in capsys.readouterr().out
    assert run_folder(archive, '-write_lists') == 2
    assert 'x.zip, whose pictures are no files' in capsys.readouterr().err


def test_lists_of_one_split_folder(tmp_path, capsys):
    path = make_folders(tmp_path, parts=('',), per_class=10)
    assert run_folder(path, '-write_lists', '-opts', 'DATA.VAL_FRACTION', '0.2') == 0
    lines = [(tmp_path / f'{part}_list.txt').read_text().splitlines() for part in ('train', 'val')]
    assert len(lines[0]) == 24 and len(lines[1]) == 6
    assert '24 training images' in capsys.readouterr().out


@pytest.mark.parametrize('folder', ['ViT', 'T2T_ViT'])
@pytest.mark.runs
def test_scripts_of_the_model_directories(tmp_path, folder):
    path = make_folders(tmp_path)
    os.truncate(tmp_path / 'val' / 'cat' / '1.jpg', 300)
    script = os.path.join(ROOT, folder, 'check_data.py')
    done = subprocess.run(
        [sys.executable, script, '--dataset', 'imagenet2012', '--data_path', path,
         '-num_workers=2'], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 1, done.stderr
    assert 'cat/1.jpg: damaged image' in done.stdout and '1 problems found' in done.stdout
