"""The command line: spellings, precedence, help; the log and the bar of a short run."""

import contextlib
import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from types import SimpleNamespace

import paddle
import pytest
from paddle.distributed.utils import launch_utils

from common.cli import find_config, list_flags, parse_command_line
from common.errors import UserError
from common.machine.device import choose_device
from common.run.announce import describe_way_on, name_script
from common.run.launch import choose_processes, make_environments
from T2T_ViT.project import PROJECT as T2T_PROJECT
from tests.support.paths import ROOT, find_run
from ViT.config import get_config
from ViT.project import PROJECT

VIT = os.path.join(ROOT, 'ViT')
SHORT = ['-cfg=configs/vit_digits.yaml', '-num_workers=0', '-opts', 'TRAIN.NUM_STEPS', '12',
         'TRAIN.WARMUP_EPOCHS', '0', 'REPORT_FREQ', '6', 'VALIDATE_FREQ', '1', 'MODEL.DEPTH', '1']


def parse(*argv):
    return parse_command_line(PROJECT, list(argv), 'main_single_gpu.py')


@pytest.mark.parametrize('argv', [
    ['-batch_size=5'], ['--batch_size=5'], ['-batch_size', '5'], ['--batch_size', '5']])
def test_one_or_two_dashes_and_a_space_or_an_equals_sign(argv):
    config = parse(*argv, '-cfg', 'configs/vit_digits.yaml')
    assert config.DATA.BATCH_SIZE == 5 and config.MODEL.NAME == 'vit_digits'


def test_every_flag_of_the_reference_sets_its_option():
    config = parse(
        '-cfg=configs/vit_base_patch16_224.yaml', '-dataset=cifar10', '-data_path=/d',
        '-output=/o', '-batch_size=2', '-batch_size_eval=3', '-image_size=384', '-accum_iter=4',
        '-pretrained=p', '-resume=r', '-last_epoch=5', '-eval', '-amp', '-device=cpu',
        '-num_workers=6', '-nprocs=7', '-seed=8', '-num_classes=9')
    assert (config.DATA.DATASET, config.DATA.DATA_PATH, config.SAVE) == ('cifar10', '/d', '/o')
    assert (config.DATA.BATCH_SIZE, config.DATA.BATCH_SIZE_EVAL, config.DATA.IMAGE_SIZE,
            config.TRAIN.ACCUM_ITER) == (2, 3, 384, 4)
    assert (config.MODEL.PRETRAINED, config.MODEL.RESUME) == ('p', 'r')
    assert (config.TRAIN.LAST_EPOCH, config.DATA.NUM_WORKERS, config.NPROCS, config.SEED,
            config.MODEL.NUM_CLASSES) == (5, 6, 7, 8, 9)
    assert config.EVAL is True and config.AMP is True and config.DEVICE == 'cpu'


def test_precedence_defaults_yaml_flags_opts():
    yaml = '-cfg=configs/vit_digits.yaml'
    assert get_config().DATA.BATCH_SIZE == 128
    assert parse(yaml).DATA.BATCH_SIZE == 64
    assert parse(yaml, '-batch_size=5').DATA.BATCH_SIZE == 5
    assert parse(yaml, '-batch_size=5', '-opts', 'DATA.BATCH_SIZE', '6').DATA.BATCH_SIZE == 6
    assert parse('-opts', 'DATA.BATCH_SIZE', '6', yaml, '-batch_size=5').DATA.BATCH_SIZE == 6


def test_opts_given_twice_apply_both():
    """A launch script appends its own to the user's."""
    config = parse('-cfg=configs/vit_digits.yaml', '-opts', 'TRAIN.BASE_LR', '1e-5',
                   'TRAIN.NUM_EPOCHS', '1', '-seed=3', '-opts', 'SEED', '7', 'TRAIN.NUM_STEPS', '2')
    assert (config.TRAIN.BASE_LR, config.TRAIN.NUM_EPOCHS) == (1e-5, 1)
    assert (config.SEED, config.TRAIN.NUM_STEPS) == (7, 2)
    assert parse('-opts', 'SEED', '1', '-opts', 'SEED', '2').SEED == 2      # of two, the last
    assert parse('-opts', 'SEED', '1').TRAIN.BASE_LR == 1e-3                # nothing is left over


def test_the_first_of_two_groups_in_yaml_is_not_lost(tmp_path):
    path = tmp_path / 'mine.yaml'
    groups = 'TRAIN:\n  BASE_LR: 1e-5\nMODEL:\n  NAME: mine\nTRAIN:\n  NUM_STEPS: 2\n'
    path.write_text(f'BASE: [{VIT}/configs/vit_digits.yaml]\n{groups}')
    with pytest.raises(UserError, match='line 6: TRAIN is given twice, first in line 2'):
        parse(f'-cfg={path}')


def test_batch_size_is_that_of_the_evaluation_too():
    assert parse('-eval', '-batch_size=5').DATA.BATCH_SIZE_EVAL == 5
    assert parse('-eval', '-batch_size=5', '-batch_size_eval=7').DATA.BATCH_SIZE_EVAL == 7
    assert parse('-batch_size=5').DATA.BATCH_SIZE_EVAL is None


@pytest.mark.parametrize('given, meant', [
    ('-batchsize=3', 'batch_size'), ('-pretrain=x', 'pretrained'), ('--data-path=x', 'data_path'),
    ('-out=x', 'output'), ('-worker=1', 'num_workers')])
def test_an_unknown_flag_names_the_nearest(given, meant):
    with pytest.raises(UserError, match=f'Did you mean {meant}'):
        parse(given)


def test_help_explains_every_flag():
    text = io.StringIO()
    with contextlib.redirect_stdout(text), pytest.raises(SystemExit) as stop:
        parse('-h')
    assert stop.value.code == 0
    text = text.getvalue()
    for key, option in list_flags().items():
        for flag in option.flags:
            assert re.search(rf'-{flag}\b[^[]*\[{re.escape(key)}\]', text), flag
    for flag in ('-cfg', '-opts', 'examples:'):
        assert flag in text
    for config in re.findall(r'-cfg=(\S+)', text):
        assert os.path.exists(os.path.join(VIT, config)), config


def test_a_config_is_looked_for_beside_the_script(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config('configs/vit_digits.yaml', VIT) == f'{VIT}/configs/vit_digits.yaml'
    os.mkdir('configs')
    open('configs/vit_digits.yaml', 'w').close()
    assert find_config('configs/vit_digits.yaml', VIT) == 'configs/vit_digits.yaml'


def test_devices_and_processes(monkeypatch):
    monkeypatch.setattr('common.machine.device.count_gpus', lambda: 4)
    monkeypatch.setenv('FLAGS_selected_gpus', '2')
    assert [choose_device(wanted) for wanted in ('auto', 'cpu', 'gpu', 'gpu:1')] \
        == ['gpu:2', 'cpu', 'gpu:2', 'gpu:1']
    for wanted in ('gpu:4', 'gpu:x', 'cpu:0', 'cuda'):
        with pytest.raises(UserError):
            choose_device(wanted)
    assert choose_processes(get_config()) == (4, 'nccl')
    assert choose_processes(get_config(flags={'NPROCS': 2})) == (2, 'nccl')
    assert choose_processes(get_config(flags={'DEVICE': 'cpu'})) == (1, 'gloo')
    assert choose_processes(get_config(flags={'DEVICE': 'cpu', 'NPROCS': 2})) == (2, 'gloo')
    with pytest.raises(UserError, match='Paddle sees 4 GPUs'):
        choose_processes(get_config(flags={'NPROCS': 5}))
    monkeypatch.setattr('common.machine.device.count_gpus', lambda: 0)
    assert choose_device('auto') == 'cpu'


@pytest.mark.runs
def test_plain_lines_without_a_terminal(tmp_path):
    done = subprocess.run([sys.executable, 'main_single_gpu.py', f'-output={tmp_path}', *SHORT],
                          cwd=VIT, capture_output=True, text=True, check=True)
    assert '\r' not in done.stdout + done.stderr and done.stderr == ''
    lines = done.stdout.splitlines()
    step = next(line for line in lines if 'update 6/12' in line)
    assert re.search(r'loss \d\.\d{4}, lr \d\.\de-\d\d, .*images/s, \d+:\d\d left', step)
    assert (find_run(tmp_path) / 'log.txt').read_text().splitlines() == lines
    for text in ('CPU settings: ', 'Device: cpu', 'Data: digits', 'Epoch 1/1: train loss',
                 'Evaluation: loss', 'Done: 12 updates'):
        assert sum(text in line for line in lines) >= 1, text
    assert lines[-1].endswith(f'To use it: python predict.py -pretrained={find_run(tmp_path)}/best '
                              'PICTURE; demo.py instead of predict.py is a web page, '
                              'export_model.py ships it.')


def test_the_scripts_to_go_on_with_are_named_as_this_one_was(monkeypatch):
    monkeypatch.chdir(ROOT)
    for started, expected in (('ViT/main_single_gpu.py', 'ViT/predict.py'),
                              ('/usr/bin/pytest', 'predict.py')):
        monkeypatch.setattr(sys, 'argv', [started])
        assert name_script('predict.py') == expected
    for resume, expected in (('auto', 'the same command.'),
                             ('', 'the same command with -resume=auto.')):
        config = get_config(flags={'MODEL.RESUME': resume})
        assert describe_way_on(config) == f'To go on: {expected}'


@pytest.mark.parametrize('project', [PROJECT, T2T_PROJECT])
def test_the_example_of_fine_tuning_is_a_recipe_for_it(project, capsys):
    with pytest.raises(SystemExit):
        parse_command_line(project, ['-h'], 'main_single_gpu.py')
    example = re.search(r'-cfg=(configs/finetune/\S+)', capsys.readouterr().out)[1]
    config = project.get_config(os.path.join(project.folder, example))
    assert config.DATA.DATASET == 'imagefolder' and config.TRAIN.MIXUP_ALPHA == 0


def test_a_progress_bar_in_a_terminal(tmp_path):
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(VIT)
        os.execve(sys.executable, [sys.executable, 'main_single_gpu.py', f'-output={tmp_path}',
                                   *SHORT], {**os.environ, 'TERM': 'xterm'})
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack('4H', 40, 160, 0, 0))
    shown = b''
    with contextlib.suppress(OSError):          # raised at the end of the other side
        while part := os.read(terminal, 4096):
            shown += part
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    shown = shown.decode()
    assert re.search(r'\d+%\|.*\| update \d+/12, [\d:]+ left, lr=\d\.\de-\d\d, loss=\d\.\d{4}, '
                     r'images/s=\d+', shown), shown
    assert re.search(r'Evaluating +\d+%\|.*batch \d+/8', shown)
    assert 'Done: 12 updates' in shown


def test_every_process_takes_the_gpu_that_paddle_gave_it(monkeypatch):
    """With the environment that paddle.distributed.spawn makes for rank 2, on the fourth GPU."""
    cluster = SimpleNamespace(trainers_nranks=lambda: 3, trainers_endpoints=lambda: ['a:1'] * 3)
    trainer = SimpleNamespace(gpus=[3], rank=2, endpoint='a:1')
    for name, value in launch_utils._prepare_trainer_env(cluster, trainer, 'nccl').items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr('common.machine.device.count_gpus', lambda: 4)
    assert choose_device('auto') == 'gpu:3'
    monkeypatch.delenv('FLAGS_selected_gpus')
    assert choose_device('auto') == 'gpu:0'


@pytest.mark.parametrize('visible', ['2,3', '2, 3', ' 2 , 3 '])
def test_visible_gpus_may_be_listed_with_spaces(visible, monkeypatch):
    """In Paddle's own code, with a stand-in for the GPUs that it asks CUDA for."""
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', visible)
    monkeypatch.setattr(paddle.base.core, 'is_compiled_with_cuda', lambda: True)
    monkeypatch.setattr(paddle.base.core, 'get_cuda_device_count', lambda: 2, raising=False)
    ranks = make_environments(2, 'nccl')
    assert [rank['FLAGS_selected_gpus'] for rank in ranks] == ['0', '1']
    assert os.environ['CUDA_VISIBLE_DEVICES'] == '2,3'


def test_the_config_of_a_run_names_no_other_files(tmp_path):
    """-resume alone takes it: nobody has said that the file which it names may be read."""
    run = tmp_path / 'train-1'
    run.mkdir()
    (tmp_path / 'secret').write_text('hunter2: [')
    (run / 'config.yaml').write_text(f'BASE: {tmp_path / "secret"}\nSEED: 3\n')
    arguments = [f'-resume={run}']
    with pytest.raises(UserError, match='names other files') as raised:
        parse_command_line(PROJECT, arguments, 'main_single_gpu.py', needs_model=True)
    assert 'hunter2' not in str(raised.value)
    (run / 'config.yaml').write_text('SEED: 3\n')
    assert parse_command_line(PROJECT, arguments, 'main_single_gpu.py', needs_model=True).SEED == 3
