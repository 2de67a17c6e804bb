"""The documented commands, on a small ImageNet-shaped folder of JPEGs."""

import json
import os
import subprocess
import sys

import paddle
import pytest

from tests.support.images import VAL_IMAGES, make_imagenet
from ViT.config import get_config
from ViT.vit import build_vit

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
VIT = os.path.join(ROOT, 'ViT')
# What shortens a command without changing what it does.
SHORT = ('-opts', 'TRAIN.NUM_EPOCHS', '2', 'TRAIN.WARMUP_EPOCHS', '1', 'MODEL.DEPTH', '2',
         'MODEL.EMBED_DIM', '48', 'MODEL.NUM_HEADS', '2', 'REPORT_FREQ', '1')


@pytest.fixture(scope='module')
def imagenet(tmp_path_factory):
    return make_imagenet(tmp_path_factory.mktemp('with_lists'))


@pytest.fixture(scope='module')
def folders_alone(tmp_path_factory):
    return make_imagenet(tmp_path_factory.mktemp('without_lists'), with_lists=False)


@pytest.fixture(scope='module')
def vit_tiny(tmp_path_factory):
    """The weights file of a vit_tiny_patch16_224 that knows nothing."""
    paddle.seed(1)
    path = str(tmp_path_factory.mktemp('weights') / 'vit_tiny_patch16_224.pdparams')
    config = get_config(os.path.join(VIT, 'configs', 'vit_tiny_patch16_224.yaml'))
    paddle.save(build_vit(config).state_dict(), path)
    return path


def run(output, *command, directory=VIT, **environment):
    """Run a command inside a model directory; return its run folder: (path, metrics, log)."""
    command = [sys.executable if word == 'python' else word for word in command]
    at = command.index('-opts') if '-opts' in command else len(command)
    command[at:at] = [f'-output={output}']
    environment = {**os.environ, 'PYTHON': sys.executable, **environment}
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True,
                          check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert '\r' not in done.stdout + done.stderr        # no progress bar but in a terminal
    name, = os.listdir(output)
    folder = os.path.join(output, name)
    with open(os.path.join(folder, 'metrics.jsonl')) as file:
        metrics = [json.loads(line) for line in file]
    with open(os.path.join(folder, 'log.txt')) as file:
        log = file.read()
    return folder, metrics, log


def check_training(folder, metrics, log, updates, epochs=2, load_config=get_config):
    """The run directory is complete and its figures have the documented fields."""
    events = [entry['event'] for entry in metrics]
    assert events.count('train_step') == updates
    assert events.count('train_epoch') == events.count('eval') == epochs
    for entry in metrics:
        fields = {'train_step': {'update', 'epoch', 'loss', 'lr', 'images_per_second'},
                  'train_epoch': {'epoch', 'loss', 'lr'},
                  'eval': {'loss', 'acc1', 'acc5', 'images', 'seconds'}}[entry['event']]
        assert fields <= set(entry)
    check_evaluation(metrics)
    names = os.listdir(folder)
    loss = next(entry['loss'] for entry in reversed(metrics) if entry['event'] == 'train_epoch')
    assert f'Epoch-{epochs}-Loss-{loss:.5f}.pdparams' in names
    assert {'best.pdparams', 'last.pdparams', 'log.txt', 'config.yaml'} <= set(names)
    checkpoint = paddle.load(os.path.join(folder, 'last.pdparams'))
    assert {'model', 'optimizer', 'epoch', 'lr_scheduler', 'amp_grad_scaler'} <= set(checkpoint)
    assert checkpoint['epoch'] == epochs
    assert 'images/s' in log and 'Done' in log and folder in log
    check_config(folder, load_config)


def check_evaluation(metrics):
    evaluation = metrics[-1]
    assert evaluation['event'] == 'eval' and evaluation['images'] == VAL_IMAGES
    assert 0 <= evaluation['acc1'] <= evaluation['acc5'] <= 100
    assert evaluation['loss'] > 0 and evaluation['seconds'] > 0


def check_config(folder, load_config=get_config):
    """config.yaml loads again, and as the same config."""
    path = os.path.join(folder, 'config.yaml')
    with open(path) as file:
        text = file.read()
    again = load_config(path)
    assert f'NAME: {again.MODEL.NAME}' in text and again.DATA.DATASET == 'imagenet2012'
    assert again == load_config(path, opts=[])
    return again


def evaluate(imagenet, vit_tiny, output):
    return run(output, 'python', 'main_multi_gpu.py', '-cfg=./configs/vit_tiny_patch16_224.yaml',
               '-dataset=imagenet2012', '-batch_size=256', f'-data_path={imagenet}', '-eval',
               f'-pretrained={vit_tiny}', '-amp', '-nprocs=2')


def test_evaluation_and_its_scripts(imagenet, vit_tiny, folders_alone, tmp_path):
    folder, metrics, _ = evaluate(imagenet, vit_tiny, tmp_path / 'command')
    check_evaluation(metrics)
    assert len(metrics) == 1 and os.path.basename(folder).startswith('eval-')
    assert check_config(folder).DATA.BATCH_SIZE_EVAL == 256
    # The folders in their order mean the labels that the lists give here; extensions may be
    # left off, and the data path may be the val folder.
    settings = {'DATA_PATH': os.path.join(folders_alone, 'val'),
                'PRETRAINED': vit_tiny.removesuffix('.pdparams')}
    for script, more in (('run_eval_multi.sh', ['-nprocs=2']), ('run_eval.sh', [])):
        _, again, _ = run(tmp_path / script, 'sh', script, *more, **settings)
        for key in ('loss', 'acc1', 'acc5', 'images'):
            assert again[-1][key] == pytest.approx(metrics[-1][key], rel=1e-6), (script, key)


def test_training_and_fine_tuning(imagenet, tmp_path):
    train = ('python', 'main_multi_gpu.py', '-cfg=./configs/vit_base_patch16_224.yaml',
             '-dataset=imagenet2012', f'-data_path={imagenet}', '-amp', '-nprocs=2')
    run_folder, metrics, log = run(tmp_path / 'train', *train, '-batch_size=4', *SHORT)
    check_training(run_folder, metrics, log, updates=6)
    weights = os.path.join(run_folder, 'best.pdparams')
    tuned, metrics, log = run(tmp_path / 'tune', *train, f'-pretrained={weights}',
                              '--batch_size', '6', *SHORT)
    check_training(tuned, metrics, log, updates=4)
    assert f'Weights from {weights}' in log and 'loaded 32 of 32 tensors' in log


@pytest.mark.parametrize('script', ['run_train.sh', 'run_train_multi.sh'])
def test_training_scripts(script, folders_alone, tmp_path):
    processes = ['-nprocs=2'] if 'multi' in script else []
    folder, metrics, log = run(tmp_path, 'sh', script, *processes, '-num_workers=1', *SHORT,
                               DATA_PATH=folders_alone, BATCH_SIZE='6')
    check_training(folder, metrics, log, updates=4 if processes else 8)
    assert '3 classes' in log and f'{1 + bool(processes)} process' in log
