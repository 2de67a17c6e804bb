"""200 interruptions at random moments, in one process and in two; not a bit is lost.

Then kills at every call by which a run changes its folder or /dev/shm: log, metrics, config, lock,
saves, links, pruning, tables, picture.

python -m pytest -m slow tests/slow/test_kills.py -s       (about two hours on two cores)
KILL_CALLS=10:50 python -m pytest -m slow tests/slow/test_kills.py -k every_call -s
    takes only the calls 10, 60, 110, ...
"""

import os
import shutil
import signal
from collections import Counter

import pytest

from tests.support.digits_job import Job, assert_same_result
from tests.support.interruptions import Interrupter
from tests.support.killer import HOWS, Killer, build_killer, count_kinds, read_all

pytestmark = pytest.mark.slow
KILLS = 200
WAYS = ['kill all', 'kill one', 'inside a save', 'inside a save']
OPTIONS = {'TRAIN.NUM_EPOCHS': 20, 'KEEP': 1}
EVERY_CALL = {'TRAIN.NUM_EPOCHS': 2, 'SAVE_STEPS': 5, 'KEEP': 1}


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


@pytest.mark.skipif(not shutil.which('cc'), reason='needs a C compiler')
@pytest.mark.parametrize('processes', [1, 2])
def test_a_kill_at_every_call(tmp_path, processes):
    """Each run is killed at its call number N, its continuation at one of its first calls."""
    library = build_killer(tmp_path)
    whole = Killer(Job(tmp_path / 'whole', processes, EVERY_CALL), library)
    code, calls = whole.run()
    assert code == 0 and len(calls) > 100, whole.job.text
    expected = read_all(whole.job)
    kills, kinds = 0, Counter()
    for at in choose_calls(len(calls)):
        killer = Killer(Job(tmp_path / f'job{at}', processes, EVERY_CALL), library)
        for number, call in enumerate((at, 1 + at * 7 % 40)):
            how, whom = HOWS[(at + number) % 3], ('all', 'one')[(at + number) % 2]
            code, done = killer.run(call, how, whom)
            if len(done) < call:            # the order differs a little from run to run
                assert code == 0, killer.job.text
                break
            # That a worker ends otherwise than wanted, when it is to end, is no matter.
            is_worker = whom == 'one' and done[call - 1][0] != killer.job.process.pid
            assert code in (1, -signal.SIGKILL, 128 + signal.SIGKILL) or (
                is_worker and code == 0), killer.job.text
            kills += 1
            kinds += count_kinds(done[call - 1:call])
        code, _ = killer.run()
        assert code == 0, killer.job.text
        assert_same_result(read_all(killer.job), expected)
        assert not killer.find_shared_files()
        shutil.rmtree(killer.job.folder)
        print(f'{processes} processes: {kills} kills, the last at call {at} of {len(calls)}',
              flush=True)
    print(f'{processes} processes, by kinds: {dict(kinds)}', flush=True)


def choose_calls(count):
    """Return the numbers of the calls, from 1, that KILL_CALLS=FIRST:STEP asks for; else all."""
    first, step = os.environ.get('KILL_CALLS', '1:1').split(':')
    return range(int(first), count + 1, int(step))
