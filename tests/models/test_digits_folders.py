"""examples/digits_to_folders.py, and what it is for: fine-tuning beats training from scratch."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from common.data.datasets import build_dataset
from common.data.digits import load_digits
from tests.support.data_folders import make_config
from tests.support.paths import ROOT, find_run


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp('digits')
    subprocess.run([sys.executable, 'examples/digits_to_folders.py', root], cwd=ROOT, check=True)
    return root


@pytest.mark.runs
def test_every_digit_is_in_one_place_with_its_label(folders):
    images, labels = load_digits()
    found = {}
    for path in folders.rglob('*.png'):
        half, part, label, name = path.relative_to(folders).parts
        index = int(name.removesuffix('.png'))
        assert index not in found and int(label) == labels[index]
        found[index] = half, part
        np.testing.assert_array_equal(np.asarray(Image.open(path))[..., 0],
                                      np.rint(images[index] * (255 / 16)))
    assert sorted(found) == list(range(1797))
    counts = {where: list(found.values()).count(where) for where in set(found.values())}
    assert counts == {('first_half', 'train'): 675, ('first_half', 'val'): 224,
                      ('second_half', 'train'): 674, ('second_half', 'val'): 224}


@pytest.mark.runs
def test_both_halves_are_picture_folders_of_ten_classes(folders):
    for half in ('first_half', 'second_half'):
        config = make_config(DATA__DATA_PATH=str(folders / half), MODEL__NUM_CLASSES=10)
        for is_train in (True, False):
            dataset = build_dataset(config, is_train, transform=None)
            assert dataset.class_names == [str(digit) for digit in range(10)]
            assert set(dataset.labels) == set(range(10))


@pytest.mark.runs
def test_the_folder_must_be_named():
    for arguments in ([], ['-bad'], ['a', 'b'], [__file__]):
        done = subprocess.run([sys.executable, 'examples/digits_to_folders.py', *arguments],
                              cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 2 and 'usage: ' in done.stderr


@pytest.mark.slow
def test_fine_tuning_beats_the_same_updates_from_scratch(folders, tmp_path):
    """The commands of the README, pre-training shortened."""
    def train(name, *arguments):
        subprocess.run([sys.executable, 'main_single_gpu.py', f'-output={tmp_path / name}',
                        *map(str, arguments)], cwd=ROOT / 'ViT', check=True, env=os.environ)
        run = find_run(tmp_path / name)
        events = [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]
        return run, [event['acc1'] for event in events if event['event'] == 'eval'][-1]

    recipe = ['-cfg=configs/finetune/vit_digits.yaml', f'-data_path={folders / "second_half"}']
    pretrained, _ = train('pretrained', '-cfg=configs/vit_digits.yaml', '-dataset=imagefolder',
                          f'-data_path={folders / "first_half"}', '-opts', 'TRAIN.NUM_EPOCHS', 40)
    _, tuned = train('tuned', *recipe, f'-pretrained={pretrained / "best"}')
    _, scratch = train('scratch', *recipe, '-opts', 'TRAIN.LAYER_DECAY', '1.0')
    assert tuned > 80 and tuned > scratch + 20
