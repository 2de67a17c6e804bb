"""The documented commands, on a small ImageNet-shaped folder of JPEGs."""

import os

import paddle
import pytest

from tests.support.commands import VIT, check_config, check_evaluation, check_training, run
from tests.support.images import make_imagenet
from ViT.config import get_config
from ViT.vit import build_vit

pytestmark = pytest.mark.runs

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
