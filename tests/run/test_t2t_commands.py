"""T2T-ViT's documented commands, on a small ImageNet-shaped folder of JPEGs."""

import os

import paddle
import pytest

from T2T_ViT.config import get_config
from T2T_ViT.t2t_vit import build_t2t_vit
from tests.support.commands import check_evaluation, check_training, run
from tests.support.images import make_imagenet
from tests.support.paths import ROOT

pytestmark = pytest.mark.runs

T2T_VIT = os.path.join(ROOT, 'T2T_ViT')
SHORT = ('-opts', 'TRAIN.NUM_EPOCHS', '1', 'TRAIN.WARMUP_EPOCHS', '0', 'TRAIN.COOLDOWN_EPOCHS',
         '1', 'MODEL.DEPTH', '1', 'REPORT_FREQ', '1', 'DATA.NUM_WORKERS', '1')


@pytest.fixture(scope='module')
def imagenet(tmp_path_factory):
    return make_imagenet(tmp_path_factory.mktemp('imagenet'), with_lists=False)


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    """The weights of a t2t_vit_7 that knows nothing; the path is without its extension."""
    paddle.seed(1)
    path = str(tmp_path_factory.mktemp('weights') / 't2t_vit_7')
    config = get_config(os.path.join(T2T_VIT, 'configs', 't2t_vit_7.yaml'))
    paddle.save(build_t2t_vit(config).state_dict(), path + '.pdparams')
    return path


def run_command(output, script, *arguments):
    return run(output, 'python', script, '-cfg=./configs/t2t_vit_7.yaml', '-dataset=imagenet2012',
               *arguments, directory=T2T_VIT)


@pytest.mark.parametrize('script, processes', [('main_single_gpu.py', []),
                                               ('main_multi_gpu.py', ['-nprocs=2'])])
def test_evaluation(script, processes, imagenet, weights, tmp_path):
    arguments = ['-batch_size=16', '-eval', f'-pretrained={weights}', *processes]
    found = []
    for folder in (imagenet, os.path.join(imagenet, 'val')):
        _, metrics, log = run_command(tmp_path / os.path.basename(folder), script,
                                      f'-data_path={folder}', *arguments)
        check_evaluation(metrics)
        assert 'loaded 111 of 111 tensors' in log
        found.append((metrics[-1]['loss'], metrics[-1]['acc1'], metrics[-1]['images']))
    assert found[0] == found[1]


@pytest.mark.parametrize('script, processes', [('main_single_gpu.py', []),
                                               ('main_multi_gpu.py', ['-nprocs=2'])])
def test_training(script, processes, imagenet, tmp_path):
    folder, metrics, log = run_command(
        tmp_path, script, f'-data_path={os.path.join(imagenet, "train")}', '-batch_size=6',
        *processes, *SHORT)
    evaluations = [entry for entry in metrics if entry['event'] == 'eval']
    assert [entry['weights'] for entry in evaluations] == ['model', 'ema'] * 2
    metrics = [entry for entry in metrics if entry.get('weights') != 'ema']
    check_training(folder, metrics, log, updates=4 if processes else 8,
                   load_config=get_config)
    assert {'model_ema'} <= set(paddle.load(os.path.join(folder, 'last.pdparams')))


@pytest.mark.parametrize('script', ['run_train.sh', 'run_train_multi.sh'])
def test_training_scripts(script, imagenet, tmp_path):
    environment = {'DATA_PATH': imagenet, 'BATCH_SIZE': '6'}
    processes = ['-nprocs=2'] if 'multi' in script else []
    run(tmp_path, 'sh', script, *processes, *SHORT, directory=T2T_VIT, **environment)


def test_evaluation_scripts(imagenet, weights, tmp_path):
    environment = {'DATA_PATH': imagenet, 'PRETRAINED': weights}
    losses = [run(tmp_path / script, 'sh', script, *processes, directory=T2T_VIT,
                  **environment)[1][-1]['loss']
              for script, processes in (('run_eval.sh', []), ('run_eval_multi.sh', ['-nprocs=2']))]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_fine_tuning_to_other_classes_and_another_size(imagenet, weights, tmp_path):
    _, _, log = run_command(
        tmp_path, 'main_single_gpu.py', f'-data_path={imagenet}', f'-pretrained={weights}',
        '-num_classes=3', '-image_size=96', '-batch_size=6', *SHORT, 'MODEL.DEPTH', '7')
    assert 'Replaced head.weight: 1000 classes in the file, 3 in the model' in log
    assert 'Resized pos_embed from 14 x 14 to 6 x 6 patches, method bicubic' in log
