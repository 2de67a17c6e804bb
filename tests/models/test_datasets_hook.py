"""datasets.py of a model directory: other transforms there are what runs use."""

import importlib

import numpy as np
import pytest
from PIL import Image

from common.run.launch import run_single
from tests.support.data_folders import make_folders


@pytest.mark.parametrize('name', ['ViT', 'T2T_ViT'])
def test_other_transforms_act(name, tmp_path, monkeypatch):
    datasets = importlib.import_module(f'{name}.datasets')
    project = importlib.import_module(f'{name}.project').PROJECT
    calls = []

    def make_grey(config, part):
        def transform(image, generator):
            calls.append(part)
            return Image.new('RGB', (config.DATA.IMAGE_SIZE, config.DATA.IMAGE_SIZE), 'grey')
        return transform

    monkeypatch.setattr(datasets, 'get_train_transforms', lambda config: make_grey(config, 'train'))
    monkeypatch.setattr(datasets, 'get_val_transforms', lambda config: make_grey(config, 'val'))
    pictures = make_folders(tmp_path / 'pictures', per_class=2)
    example = project.example_configs[0]
    assert run_single(project, [
        f'-cfg=configs/{example}.yaml', '-dataset=imagefolder', f'-data_path={pictures}',
        f'-output={tmp_path / "runs"}', '-device=cpu', '-num_classes=3', '-num_workers=0',
        '-batch_size=6', '-opts', 'TRAIN.NUM_STEPS', '1', 'TRAIN.WARMUP_EPOCHS', '0']) == 0
    assert {'train', 'val'} == set(calls)
    config = project.get_config(flags={'DATA.DATASET': 'imagefolder', 'DATA.DATA_PATH': pictures,
                                       'DATA.IMAGE_SIZE': 32})
    image, _, _ = project.get_dataset(config, True)[0, 0]
    assert (np.asarray(image) == 128).all()
