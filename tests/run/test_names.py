"""Folders whose names are not UTF-8: trained, continued, evaluated like any other."""

import contextlib
import io
import os
from pathlib import Path

import pytest

from common.checkpoints.content import read_checkpoint
from common.run.launch import run_single
from tests.support.data_folders import make_folders
from ViT.project import PROJECT

CLASSES = [os.fsdecode(b'caf\xe9'), 'katze', '苹果']


def run(*flags):
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        code = run_single(PROJECT, [
            '-cfg=configs/vit_digits.yaml', '-dataset=imagefolder', '-num_classes=3',
            '-batch_size=4', '-num_workers=0', '-image_size=16', *flags])
    assert code == 0, errors.getvalue()


@pytest.mark.parametrize('folder', ['here', os.fsdecode(b'l\xe0')])
def test_names_that_are_not_utf8(tmp_path, folder):
    root = tmp_path / folder
    try:
        data = make_folders(root / 'images', CLASSES)
    except OSError:
        pytest.skip('this file system takes UTF-8 only')
    options = ('MODEL.DEPTH', '1', 'MODEL.EMBED_DIM', '16', 'MODEL.NUM_HEADS', '2')
    for epochs in ('1', '2'):
        run(f'-data_path={data}', f'-output={root / "runs"}', '-resume=auto', '-opts', *options,
            'TRAIN.NUM_EPOCHS', epochs, 'TRAIN.WARMUP_EPOCHS', '0')
    run_folder, = (root / 'runs').iterdir()
    checkpoint = read_checkpoint(str(run_folder / 'last.pdparams'))
    assert (checkpoint['epoch'], checkpoint['class_names']) == (2, CLASSES)
    assert b'caf\xe9' in (run_folder / 'per_class.csv').read_bytes()
    run(f'-data_path={data}', f'-output={root / "evaluated"}', '-eval',
        f'-pretrained={run_folder / "best"}', '-opts', *options)
    assert list(Path(root / 'evaluated').rglob('metrics.jsonl'))
