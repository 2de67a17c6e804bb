"""5,000 pictures in every form: the weights of a run that is killed and resumed in mid-epoch.

python -m pytest -m slow tests/slow/test_sources.py -s       (about 10 minutes on two cores)
"""

import time

import pytest

from tests.support.data_folders import make_folders
from tests.support.digits_job import Job, assert_same_result
from tests.support.sources import write_all

pytestmark = [pytest.mark.slow, pytest.mark.runs]
OPTIONS = {'TRAIN.NUM_EPOCHS': 1, 'SAVE_STEPS': 10, 'DATA.NUM_WORKERS': 2}


@pytest.mark.parametrize('processes', [1, 2])
def test_every_form_trains_the_same_weights(tmp_path, monkeypatch, processes):
    monkeypatch.setenv('VIT_CACHE', str(tmp_path / 'cache'))
    root = make_folders(tmp_path / 'root', classes=[f'c{n}' for n in range(10)], per_class=500)
    forms = write_all(root, tmp_path / 'forms')
    whole = Job(tmp_path / 'whole', processes, {**OPTIONS, **forms.pop('folders')}, resume=None)
    assert whole.run(fault=None) == 0, whole.text
    expected = whole.read_result()
    for form, options in forms.items():
        job = Job(tmp_path / form.replace(' ', '_'), processes, {**OPTIONS, **options})
        job.start()
        assert job.wait_for(lambda job=job: len(job.find_checkpoints()) >= 2), job.text
        time.sleep(0.2)
        job.end()
        assert job.find_checkpoints()[0].time > 0
        assert job.run() == 0, job.text
        assert_same_result(job.read_result(), expected)
        print(f'{processes} processes: {form}: the same', flush=True)
