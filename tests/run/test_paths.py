"""One way for every script: "~", paths, run folders, hidden and linked files, outputs."""

import io
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from common.cli import expand_home, parse_command_line
from common.deploy import export, predict, visualize
from common.machine.environment import read_cpu_quota
from common.run.launch import run_single
from common.tools import check_data, convert_weights, plot
from common.weights.registry import resolve
from tests.support.colours import list_arguments, make_colours
from tests.support.paths import ROOT
from ViT.project import PROJECT


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    """A home folder with data/, runs/one (a finished run) and tiny.yaml."""
    home = tmp_path_factory.mktemp('home')
    data = make_colours(home / 'data')
    assert run_single(PROJECT, ['-device=cpu', f'-data_path={data}', f'-output={home}/runs',
                                *list_arguments(TRAIN__NUM_EPOCHS=1)]) == 0
    made = next((home / 'runs').glob('train-*'))
    made.rename(home / 'runs/one')
    shutil.copy(home / 'runs/one/config.yaml', home / 'tiny.yaml')
    return home


COMMANDS = {
    'train': lambda out: run_single(PROJECT, [
        '-cfg=~/tiny.yaml', '-data_path=~/data', f'-output={out}/x', '-device=cpu']),
    'eval': lambda out: run_single(PROJECT, [
        '-cfg=~/tiny.yaml', '-data_path=~/data', f'-output={out}/x', '-eval', '-device=cpu',
        '-pretrained=~/runs/one/best']),
    'resume': lambda out: run_single(PROJECT, [
        '-cfg=~/tiny.yaml', '-data_path=~/data', f'-output={out}/x', '-device=cpu',
        '-resume=~/runs/one', '-opts', 'TRAIN.NUM_EPOCHS', '2']),
    'predict': lambda out: predict.main(PROJECT, [
        '~/data/val', '-pretrained=~/runs/one', f'-output={out}/x', '-device=cpu',
        f'-save_dir={out}/y']),
    'export': lambda out: export.main(PROJECT, ['-pretrained=~/runs/one/last', f'-output={out}/x']),
    'visualize': lambda out: visualize.main(PROJECT, [
        '~/data/val/apple/0.png', '-pretrained=~/runs/one/best.pdparams', f'-output={out}/x',
        '-device=cpu']),
    'check_data': lambda out: check_data.main(PROJECT, [
        '-cfg=~/tiny.yaml', '-data_path=~/data', '-num_workers=1']),
    'convert': lambda out: convert_weights.main(PROJECT, ['~/runs/one/best', '-o',
                                                          f'{out}/x.pdparams']),
    'plot': lambda out: plot.main(['~/runs/one', '-o', f'{out}/x.png']),
}


@pytest.mark.parametrize('name', COMMANDS)
def test_the_home_folder_is_known_to_every_script(name, home, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('HOME', str(home))
    monkeypatch.chdir(tmp_path)
    if name == 'plot':
        pytest.importorskip('matplotlib')
    (home / 'made').mkdir()
    assert COMMANDS[name]('~/made') == 0
    assert os.listdir(tmp_path) == []
    assert name == 'check_data' or os.listdir(home / 'made')
    shutil.rmtree(home / 'made')


def test_the_home_folder_in_arguments_and_options(home, monkeypatch):
    monkeypatch.setenv('HOME', str(home))
    for given, meant in (('~/a', f'{home}/a'), ('-x=~/a', f'-x={home}/a'), ('a~', 'a~'),
                         ('-x=a=~', '-x=a=~'), ('./~/a', './~/a')):
        assert expand_home(given) == meant
    config = parse_command_line(PROJECT, [
        '-opts', 'DATA.LABELS', '~/l.txt', 'SAVE', '~/s', 'MODEL.RESUME', '~/r'], 'x')
    found = config.DATA.LABELS, config.SAVE, config.MODEL.RESUME
    assert found == tuple(f'{home}/{name}' for name in ('l.txt', 's', 'r'))


def test_a_labels_file_is_recorded_so_that_later_runs_find_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = parse_command_line(PROJECT, ['-opts', 'DATA.LABELS', 'labels.txt'], 'x')
    assert str(tmp_path / 'labels.txt') == config.DATA.LABELS


def test_a_run_folder_stands_for_its_best_checkpoint(home, tmp_path):
    folder = home / 'runs/one'
    assert resolve(folder) == str(folder / 'best.pdparams')
    (tmp_path / 'last.pdparams').write_bytes(b'')
    assert resolve(tmp_path) == str(tmp_path / 'last.pdparams')
    assert resolve(folder / 'last') == str(folder / 'last.pdparams')


# What predict.py reads, and what it must not write over

def read_bytes(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}


@pytest.mark.parametrize('given', ['folder', 'link', 'file'])
def test_pictures_are_never_written_over(home, tmp_path, capsys, given):
    make_colours(tmp_path, {'one': 'red'}, ('mine',), each=2, ending='.jpg')
    folder = tmp_path / 'mine/one'
    before = read_bytes(folder)
    (tmp_path / 'link').symlink_to(folder)
    image, target = {'folder': (folder, folder), 'link': (folder, tmp_path / 'link'),
                     'file': (folder / '0.jpg', folder)}[given]
    flags = [f'-pretrained={home}/runs/one', '-device=cpu', '-topk=1']
    assert predict.main(PROJECT, [str(image), f'-save_dir={target}', *flags]) == 2
    assert 'would be written over' in capsys.readouterr().err
    assert read_bytes(folder) == before
    for output in (folder / '0.jpg', tmp_path / 'link/1.jpg'):
        assert predict.main(PROJECT, [str(folder), f'-output={output}', *flags]) == 2
        assert 'is a picture, which would be written over' in capsys.readouterr().err
    assert read_bytes(folder) == before
    assert predict.main(PROJECT, [str(image), f'-save_dir={tmp_path}/labelled', *flags]) == 0
    assert predict.main(PROJECT, [str(image), f'-save_dir={tmp_path}/labelled', *flags]) == 0
    assert (tmp_path / 'labelled/0.jpg').exists() and read_bytes(folder) == before


def test_pictures_named_on_the_standard_input_are_not_written_over(home, tmp_path, monkeypatch,
                                                                   capsys):
    make_colours(tmp_path, {'one': 'red'}, ('mine',), each=2, ending='.jpg')
    folder = tmp_path / 'mine/one'
    before = read_bytes(folder)
    monkeypatch.setattr('sys.stdin', io.StringIO(f'{folder}/0.jpg\n{folder}/1.jpg\n'))
    assert predict.main(PROJECT, ['-', f'-save_dir={folder}', '-device=cpu',
                                  f'-pretrained={home}/runs/one']) == 2
    assert read_bytes(folder) == before


# check_data

def test_unreadable_files_are_listed_before_anything_else_ends_the_check(tmp_path, capsys):
    data = make_colours(tmp_path, {'apple': 'red', 'banana': 'yellow', 'cherry': 'blue'})
    (tmp_path / 'train/apple/0.png').write_bytes(b'')
    shutil.rmtree(tmp_path / 'val')
    (tmp_path / 'val').mkdir()
    flags = ['-dataset=imagefolder', f'-data_path={data}', '-num_workers=1', '-num_classes=2']
    assert check_data.main(PROJECT, flags) == 2
    out, err = capsys.readouterr()
    assert 'apple/0.png: the file is empty' in out and 'error: ' in err
    (tmp_path / 'train/cherry').rename(tmp_path / 'gone')
    assert check_data.main(PROJECT, flags) == 2
    assert 'apple/0.png: the file is empty' in capsys.readouterr().out


def test_check_data_does_not_check_the_digits_instead_of_a_folder(tmp_path, capsys):
    assert check_data.main(PROJECT, [f'-data_path={make_colours(tmp_path)}']) == 2
    assert f'-data_path={tmp_path} is given' in capsys.readouterr().err


def test_check_data_finds_the_model_directorys_configs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert check_data.main(PROJECT, ['-cfg=configs/vit_digits.yaml', '-num_workers=1']) == 0


# Machines

@pytest.mark.parametrize(('files', 'own', 'quota'), [
    ({}, '0::/\n', None),
    ({'cpu.max': '150000 100000'}, '0::/\n', 1.5),
    ({'cpu.max': 'max 100000'}, '0::/\n', None),
    ({'a/b/cpu.max': '200000 100000', 'cpu.max': '400000 100000'}, '0::/a/b\n', 2.0),
    ({'cpu/cpu.cfs_quota_us': '100000', 'cpu/cpu.cfs_period_us': '100000'},
     '4:cpu,cpuacct:/\n', 1),
    ({'cpu/d/cpu.cfs_quota_us': '50000', 'cpu/d/cpu.cfs_period_us': '100000',
      'cpu/cpu.cfs_quota_us': '-1', 'cpu/cpu.cfs_period_us': '100000'},
     '12:memory:/m\n4:cpu,cpuacct:/d\n', 0.5)])
def test_the_quota_of_a_container(tmp_path, files, own, quota):
    for name, text in files.items():
        path = tmp_path / 'cgroup' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'{text}\n')
    (tmp_path / 'own').write_text(own)
    assert read_cpu_quota(str(tmp_path / 'cgroup'), str(tmp_path / 'own')) == quota


# Shell scripts

@pytest.mark.runs
@pytest.mark.parametrize('folder', ['ViT', 'T2T_ViT'])
def test_run_eval_names_the_variables_that_it_needs(folder, tmp_path):
    script = str(ROOT / folder / 'run_eval.sh')
    environment = {**os.environ, 'PYTHON': 'true'}
    environment.pop('PRETRAINED', None)
    for data, said in ((tmp_path / 'nowhere', 'Set DATA_PATH'), (tmp_path, 'Set PRETRAINED')):
        ended = subprocess.run(['sh', script], env={**environment, 'DATA_PATH': str(data)},
                               capture_output=True, text=True, cwd=tmp_path)
        assert ended.returncode == 2 and said in ended.stderr
    (tmp_path / 'w.pdparams').write_bytes(b'')
    ended = subprocess.run(['sh', script], capture_output=True, text=True, cwd=tmp_path, env={
        **environment, 'DATA_PATH': str(tmp_path), 'PRETRAINED': './w'})
    assert (ended.returncode, ended.stderr) == (0, '')
