"""The same pictures in every form give the same order, batches and evaluation, bit for bit."""

import os

import numpy as np
import pytest

from common.config import Options, load_config
from common.data.datasets import build_dataset, open_dataset
from common.data.loader import build_loader
from common.data.sampler import EvalBatches, TrainBatches
from common.data.transforms import build_eval_transform, build_train_transform
from common.tools.check_data import check_data
from tests.support.data_folders import make_folders
from tests.support.digits_job import Job, assert_same_result
from tests.support.sources import write_all

pytest.importorskip('pyarrow', reason='pip install -r requirements-dev.txt')

FORMS = ['list', 'csv', 'zip', 'deflated zip', 'tar', 'shards', 'parquet']
CLASSES = ('B', 'a', 'a b', 'ünï')
FOUR = {'MODEL.NUM_CLASSES': 4}


@pytest.fixture(scope='module')
def forms(tmp_path_factory):
    """{form: options} of 144 training and 144 validation pictures."""
    folder = tmp_path_factory.mktemp('sources')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('VIT_CACHE', str(folder / 'cache'))
        root = make_folders(folder / 'root', classes=CLASSES, per_class=36)
        yield write_all(root, folder / 'forms')


def read_batches(options, workers, is_train):
    """Return every array of two epochs of training, or of an evaluation."""
    config = load_config(Options, flags={**options, 'DATA.IMAGE_SIZE': 32})
    transform = build_train_transform(config) if is_train else build_eval_transform(config)
    dataset = build_dataset(config, is_train, transform)
    batches = TrainBatches(len(dataset), 32, seed=3).slice(2, 8) if is_train else \
        EvalBatches(len(dataset), 50)
    loader = build_loader(dataset, batches, config, num_workers=workers)
    return [array.numpy() for batch in loader for array in batch]


@pytest.fixture(scope='module')
def expected(forms):
    return {is_train: read_batches(forms['folders'], 0, is_train) for is_train in (True, False)}


@pytest.mark.parametrize('workers', [0, 1, 3])
@pytest.mark.parametrize('form', FORMS)
def test_batches_are_those_of_the_folder(forms, expected, form, workers):
    for is_train in (True, False):
        found = read_batches(forms[form], workers, is_train)
        assert len(found) == len(expected[is_train]) > 6
        assert all(one.dtype == other.dtype and np.array_equal(one, other)
                   for one, other in zip(found, expected[is_train]))


@pytest.mark.parametrize('form', FORMS)
def test_classes_and_the_check_are_those_of_the_folder(forms, form, capsys):
    config = load_config(Options, flags=forms[form])
    assert check_data(config) == [] and check_data(config, fast=True) == []
    assert ': 144 training images, 4 classes from ' in capsys.readouterr().out
    for is_train in (True, False):
        dataset = open_dataset(config, is_train)
        assert dataset.class_names == (None if form == 'list' else list(CLASSES))
        names = [os.fsdecode(name) for name in dataset.reader.table.iterate_names()]
        assert names[37] == f'{"train" if is_train else "val"}/a/1.jpg'


@pytest.fixture(scope='module')
def uninterrupted(forms, tmp_path_factory):
    job = Job(tmp_path_factory.mktemp('whole'), options={**FOUR, **forms['folders']},
              resume=None)
    assert job.run() == 0, job.text
    return job.read_result()


@pytest.mark.runs
@pytest.mark.parametrize('form', ['shards', 'parquet'])
def test_a_killed_and_resumed_run_ends_as_from_the_folder(forms, uninterrupted, tmp_path, form):
    job = Job(tmp_path / 'killed', options={**FOUR, **forms[form]})
    assert job.run(fault='any:9:kill') == -9, job.text
    assert job.run() == 0, job.text
    assert_same_result(job.read_result(), uninterrupted)
