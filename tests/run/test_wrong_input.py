"""Wrong input: exit code 2, one or two lines on stderr that name it, no run folder left."""

import contextlib
import io
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import paddle
import pytest

from common.run.launch import run_multi, run_single
from tests.support.images import CLASSES, make_imagenet
from tests.support.paths import ROOT, find_run
from ViT.project import PROJECT

DIGITS = '-cfg=configs/vit_digits.yaml'
TINY = ('MODEL.DEPTH', '1', 'MODEL.EMBED_DIM', '16', 'MODEL.NUM_HEADS', '2',
        'MODEL.PATCH_SIZE', '32', 'DATA.IMAGE_SIZE', '64')


@pytest.fixture(scope='module')
def imagenet(tmp_path_factory):
    return make_imagenet(tmp_path_factory.mktemp('imagenet'))


@pytest.fixture
def copied(imagenet, tmp_path):
    """A copy of the images that a test may spoil."""
    return shutil.copytree(imagenet, tmp_path / 'images')


def run(argv, start=run_single):
    """Run in this process; return the exit code and what went to stderr."""
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        code = start(PROJECT, [str(argument) for argument in argv])
    return SimpleNamespace(code=code, stderr=errors.getvalue())


def check(argv, *expected, output=None, start=run_single):
    """Run; the input must be refused in words that hold every expected text."""
    if output is not None:
        argv = [argv[0], f'-output={output}', *argv[1:]]
    done = run(argv, start)
    assert done.code == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert 1 <= len(lines) <= 2 and lines[0].startswith('error: '), done.stderr
    assert 'Traceback' not in done.stderr
    for text in expected:
        assert str(text) in done.stderr, (text, done.stderr)
    if output is not None and os.path.isdir(output):
        assert os.listdir(output) == []


COMMAND_LINES = {
    'missing yaml': ([('-cfg=configs/vit_digit.yaml')], ['configs/vit_digit.yaml', 'No such file']),
    'unknown flag': ([DIGITS, '-batchsize=4'], ['-batchsize', 'Did you mean batch_size?']),
    'shortened flag': ([DIGITS, '-batch=4'], ['-batch', 'Did you mean batch_size?']),
    'value without flag': ([DIGITS, 'digits'], ["'digits'", 'Quote names that have spaces']),
    'flag without value': ([DIGITS, '-batch_size'], ['batch_size', 'expected one argument']),
    'text for a number': ([DIGITS, '-batch_size=many'], ['batch_size', 'many']),
    'unknown key': ([DIGITS, '-opts', 'TRAIN.BASE_LRR', '1'],
                    ['TRAIN.BASE_LRR', 'Did you mean TRAIN.BASE_LR?']),
    'key without value': ([DIGITS, '-opts', 'TRAIN.BASE_LR'], ['TRAIN.BASE_LR', 'no value']),
    'key=value': ([DIGITS, '-opts', 'TRAIN.NUM_STEPS=20'], ['write TRAIN.NUM_STEPS 20']),
    'key=value twice': ([DIGITS, '-opts', 'TRAIN.NUM_STEPS=20', 'SEED=1'],
                        ['write TRAIN.NUM_STEPS 20']),
    'a group for a key': ([DIGITS, '-opts', 'TRAIN', '1'], ['TRAIN', 'group']),
    'wrong type': ([DIGITS, '-opts', 'TRAIN.NUM_EPOCHS', 'ten'],
                   ['TRAIN.NUM_EPOCHS', 'an integer', 'ten']),
    'unknown data set': ([DIGITS, '-dataset=imagenet'], ['imagenet', 'imagenet2012']),
    'unknown optimizer': ([DIGITS, '-opts', 'TRAIN.OPTIMIZER.NAME', 'Momentun'],
                          ['Momentun', 'Did you mean Momentum?']),
    'unknown schedule': ([DIGITS, '-opts', 'TRAIN.LR_SCHEDULER.NAME', 'cosin'],
                         ['cosin', 'Did you mean cosine?']),
    'unknown weights': ([DIGITS, '-pretrained=vit_base_patch16_225'],
                        ['vit_base_patch16_225', 'Did you mean', 'vit_base_patch16_224?']),
    'batch size 0': ([DIGITS, '-batch_size=0'], ['DATA.BATCH_SIZE', 'above 0']),
    'negative accumulation': ([DIGITS, '-accum_iter=-1'], ['TRAIN.ACCUM_ITER', 'above 0']),
    'patch does not divide': ([DIGITS, '-image_size=30'],
                              ['30', 'not a multiple', 'MODEL.PATCH_SIZE', '24 or 32']),
    'fewer samples than a batch': ([DIGITS, '-batch_size=2000'],
                                   ['1347', '2000', '-batch_size=1347']),
    'too few classes': ([DIGITS, '-num_classes=9'], ['10', '-num_classes=10']),
    'no data path': (['-cfg=configs/vit_tiny_patch16_224.yaml'], ['-data_path']),
    'missing data path': (['-cfg=configs/vit_tiny_patch16_224.yaml', '-data_path=/no/such'],
                          ['/no/such', '-data_path']),
    'missing resume': ([DIGITS, '-resume=/no/such'], ['-resume', '/no/such']),
    'missing weights': ([DIGITS, '-pretrained=/no/such'], ['/no/such']),
    'evaluation without weights': ([DIGITS, '-eval'], ['-pretrained']),
    'processes for one': ([DIGITS, '-nprocs=2'], ['-nprocs=2', 'main_multi_gpu.py']),
    'unknown device': ([DIGITS, '-device=tpu'], ['tpu', 'gpu:N']),
    'resume for evaluation': ([DIGITS, '-eval', '-resume=auto'], ['-resume', '-pretrained']),
    'text among numbers': ([DIGITS, '-opts', 'DATA.IMAGENET_STD', '["a",1,1]'],
                           ['DATA.IMAGENET_STD', 'numbers']),
    'one number of two': ([DIGITS, '-opts', 'TRAIN.OPTIMIZER.BETAS', '[0.9]'],
                          ['TRAIN.OPTIMIZER.BETAS', '2 numbers']),
    'range with zero': ([DIGITS, '-opts', 'TRAIN.CROP_RATIO', '[0,1]'],
                        ['TRAIN.CROP_RATIO', 'from 0.01']),
    'range turned round': ([DIGITS, '-opts', 'TRAIN.AFFINE_SCALE', '[1.2,0.8]'],
                           ['TRAIN.AFFINE_SCALE', 'ends before']),
    'infinite rate': ([DIGITS, '-opts', 'TRAIN.BASE_LR', '1e999'], ['TRAIN.BASE_LR', 'finite']),
    'nothing kept': ([DIGITS, '-opts', 'MODEL.DROPPATH', '1.0'], ['MODEL.DROPPATH', 'below 1']),
    'grey images': ([DIGITS, '-opts', 'DATA.IMAGE_CHANNELS', '1', 'DATA.IMAGENET_MEAN', '[0.5]',
                     'DATA.IMAGENET_STD', '[0.5]'],
                    ['DATA.IMAGE_CHANNELS', 'RGB']),
    'huge seed': ([DIGITS, f'-seed={10 ** 20}'], ['SEED', '2 ** 63']),
}


@pytest.mark.parametrize('name', COMMAND_LINES)
def test_command_line(name, tmp_path):
    argv, expected = COMMAND_LINES[name]
    check(argv, *expected, output=tmp_path / 'runs')


@pytest.mark.skipif(paddle.device.is_compiled_with_cuda(), reason='a GPU build')
@pytest.mark.parametrize('device', ['gpu', 'gpu:3'])
def test_no_gpu(device, tmp_path):
    check([DIGITS, f'-device={device}'], device, '0 GPUs', '-device cpu', output=tmp_path / 'runs')


def test_more_processes_than_the_machine_serves(tmp_path):
    check([DIGITS, '-device=cpu', '-nprocs=4096'], '4096', 'cores', output=tmp_path / 'runs',
          start=run_multi)


@pytest.mark.parametrize('content, expected', [
    (b'MODEL: {NAME: a', ['line 1']),
    (b'\xff\xfe\x00', ['not a yaml text file']),
    (b'- a list', ['list']),
    (b'TRAIN:\n  BASE_LRR: 1\n', ['TRAIN.BASE_LRR', 'TRAIN.BASE_LR?']),
    (b'MODEL:\n  NUM_CLASSES: ten\n', ['MODEL.NUM_CLASSES', "'ten'"]),
    (b'BASE: [other.yaml]\n', ['other.yaml', 'No such file']),
], ids=['syntax', 'binary', 'list', 'key', 'type', 'base'])
def test_yaml(content, expected, tmp_path):
    path = tmp_path / 'bad.yaml'
    path.write_bytes(content)
    check([f'-cfg={path}'], tmp_path, *expected, output=tmp_path / 'runs')


def on_images(folder, *more, opts=()):
    return ['-cfg=configs/vit_tiny_patch16_224.yaml', f'-data_path={folder}', '-batch_size=4',
            '-num_workers=0', *more, '-opts', *TINY, 'TRAIN.NUM_EPOCHS', '1',
            'TRAIN.WARMUP_EPOCHS', '0', *opts]


def edit_list(folder, part, line, text):
    path = os.path.join(folder, f'{part}_list.txt')
    with open(path) as file:
        lines = file.read().splitlines()
    lines[line - 1] = text
    with open(path, 'w') as file:
        file.write('\n'.join(lines) + '\n')


def test_missing_list(copied, tmp_path):
    os.remove(os.path.join(copied, 'train_list.txt'))
    check(on_images(copied), 'train_list.txt', output=tmp_path / 'runs')


def test_missing_image_is_named_with_its_line(copied, tmp_path):
    edit_list(copied, 'val', 5, f'val/{CLASSES[0]}/gone.JPEG 0')
    check(on_images(copied), 'val_list.txt, line 5', 'gone.JPEG', output=tmp_path / 'runs')


@pytest.mark.parametrize('label', ['cat', '1.5', '-1', '1000'])
def test_label_in_a_list(label, copied, tmp_path):
    edit_list(copied, 'train', 3, f'train/{CLASSES[0]}/a.JPEG {label}')
    check(on_images(copied), 'train_list.txt, line 3', label, output=tmp_path / 'runs')


def test_empty_list(copied, tmp_path):
    open(os.path.join(copied, 'train_list.txt'), 'w').close()
    check(on_images(copied), 'train_list.txt', output=tmp_path / 'runs')


def test_empty_folder(tmp_path):
    os.mkdir(tmp_path / 'images')
    check(on_images(tmp_path / 'images', '-dataset=imagefolder'), 'empty',
          output=tmp_path / 'runs')


@pytest.mark.parametrize('workers', [0, 1])
def test_corrupt_image_stops_training_with_its_path(workers, copied, tmp_path):
    path = os.path.join(copied, 'train', CLASSES[1], f'{CLASSES[1]}_4.JPEG')
    with open(path, 'wb') as file:
        file.write(b'\xff\xd8 not a picture')
    check(on_images(copied, f'-num_workers={workers}'), path, output=tmp_path / 'runs')


def test_corrupt_image_is_skipped_and_counted_when_asked(copied, tmp_path):
    path = os.path.join(copied, 'train', CLASSES[1], f'{CLASSES[1]}_4.JPEG')
    open(path, 'wb').close()
    done = run(on_images(copied, f'-output={tmp_path / "runs"}',
                         opts=['DATA.SKIP_CORRUPT', 'True']))
    assert done.code == 0, done.stderr
    log = (find_run(tmp_path / 'runs') / 'log.txt').read_text()
    line, = [line for line in log.splitlines() if 'were skipped' in line]
    assert path in line and '1 unreadable images were skipped, 1 times' in line


@pytest.mark.parametrize('flag', ['-pretrained', '-resume'])
def test_file_that_is_no_checkpoint(flag, tmp_path):
    path = tmp_path / 'notes.pdparams'
    path.write_text('these are notes')
    check([DIGITS, f'{flag}={path}'], path, output=tmp_path / 'runs')


def test_weights_are_no_checkpoint_to_resume(tmp_path):
    path = str(tmp_path / 'weights.pdparams')
    paddle.save(PROJECT.build_model(PROJECT.get_config()).state_dict(), path)
    check([DIGITS, f'-resume={path}'], path, '-pretrained', output=tmp_path / 'runs')


def test_checkpoint_of_another_model(tmp_path):
    path = str(tmp_path / 'other.pdparams')
    opts = [DIGITS, '-num_workers=0', f'-output={tmp_path / "first"}', '-opts',
            'TRAIN.NUM_STEPS', '1', 'TRAIN.WARMUP_STEPS', '0', 'MODEL.DEPTH', '1',
            'MODEL.EMBED_DIM', '16']
    assert run(opts).code == 0
    path = find_run(tmp_path / 'first') / 'last'
    check([DIGITS, f'-resume={path}'], 'another model', output=tmp_path / 'runs')
    check([DIGITS, f'-pretrained={path}'], 'last.pdparams', output=tmp_path / 'runs')


def test_output_not_writable(tmp_path):
    (tmp_path / 'file').write_text('')
    check([DIGITS, f'-output={tmp_path / "file" / "runs"}'], tmp_path / 'file', '-output')
    assert (tmp_path / 'file').read_text() == ''


@pytest.mark.skipif(os.geteuid() == 0, reason='root may write everywhere')
def test_output_without_permission(tmp_path):
    os.chmod(tmp_path, 0o500)
    check([DIGITS, f'-output={tmp_path / "runs"}'], tmp_path, 'Permission denied')


@pytest.mark.runs
def test_a_script_exits_with_2_and_says_it_once(tmp_path):
    done = subprocess.run(
        [sys.executable, 'main_multi_gpu.py', DIGITS, '-device=cpu', '-nprocs=2',
         '-batch_size=2000', f'-output={tmp_path / "runs"}'], cwd=os.path.join(ROOT, 'ViT'),
        capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count('1347 training images') == 1 and 'Traceback' not in done.stderr
    assert os.listdir(tmp_path / 'runs') == []
