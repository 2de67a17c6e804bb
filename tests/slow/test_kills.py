"""200 interruptions at random moments, in one process and in two; not a bit is lost.

python -m pytest -m slow tests/slow/test_kills.py -s       (about 20 minutes on two cores)
"""

import signal

import pytest

from tests.support.digits_job import Job, assert_same_result
from tests.support.interruptions import Interrupter

pytestmark = pytest.mark.slow
KILLS = 200
WAYS = ['kill all', 'kill one', 'inside a save', 'inside a save']
OPTIONS = {'TRAIN.NUM_EPOCHS': 20, 'KEEP': 1}


@pytest.mark.parametrize('processes', [1, 2])
def test_200_kills_change_nothing(tmp_path, processes):
    assert interrupt_until(tmp_path, processes, WAYS, KILLS) >= KILLS


@pytest.mark.parametrize('processes', [1, 2])
def test_50_signals_change_nothing(tmp_path, processes):
    ways = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]
    assert interrupt_until(tmp_path, processes, ways, 50) >= 50


def interrupt_until(folder, processes, ways, most):
    """Run jobs until `most` interruptions have hit; compare each with an uninterrupted one."""
    whole = Job(folder / 'whole', processes, OPTIONS, resume=None)
    assert whole.run() == 0, whole.text
    expected = whole.read_result()
    hits, counts, jobs = 0, {}, 0
    while hits < most:
        jobs += 1
        interrupter = Interrupter(Job(folder / f'job{jobs}', processes, OPTIONS), seed=jobs,
                                  seconds=1.5)
        hits += interrupter.run(most - hits, ways)
        for way, count in interrupter.counts.items():
            counts[way] = counts.get(way, 0) + count
        assert_same_result(interrupter.job.read_result(), expected)
        print(f'{processes} processes: {hits} interruptions of {jobs} jobs: {counts}', flush=True)
    return hits
