"""Documented commands, started as a user starts them, and what they leave behind."""

import json
import os
import subprocess
import sys

import paddle

from tests.support.images import VAL_IMAGES
from tests.support.paths import ROOT, find_run
from ViT.config import get_config

VIT = ROOT / 'ViT'


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
    folder = str(find_run(output))
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
    assert f'Epoch-{epochs}-Loss-{loss:.6g}.pdparams' in names
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
