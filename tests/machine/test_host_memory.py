"""Tensors as arrays of the same memory, and work shared among the cores."""

import math
import subprocess
import sys
import textwrap
import threading

import numpy as np
import paddle
import pytest

from common.machine import host_memory
from common.machine.host_memory import run_by_rows, share


@pytest.fixture
def three_threads(monkeypatch):
    """Three threads, from 10 numbers on, at 30 numbers a time."""
    monkeypatch.setattr(host_memory, 'count_threads', lambda: 3)
    monkeypatch.setattr(host_memory, 'LEAST', 10)
    monkeypatch.setattr(host_memory, 'NUMBERS_AT_ONCE', 30)
    host_memory._get_pool.cache_clear()
    yield
    host_memory._get_pool.cache_clear()


@pytest.mark.parametrize('shape', [
    (0, 4), (1, 1), (29,), (31,), (1000,), (7, 5), (100, 7), (5, 300), (3, 2, 8), (9, 0)])
def test_every_row_is_taken_once(three_threads, shape):
    taken = np.zeros(shape[0], int)

    def take(rows):
        width = max(1, math.prod(shape[1:]))
        assert 0 < rows.stop - rows.start < 30 / width + 1
        taken[rows] += 1

    run_by_rows(take, np.empty(shape))
    assert (taken == 1).all()


def test_several_threads_work(three_threads):
    barrier = threading.Barrier(3, timeout=300)          # passed only by three at a time
    run_by_rows(lambda rows: barrier.wait(), np.empty((3, 30)))


def test_little_work_is_done_here(three_threads):
    threads = set()
    run_by_rows(lambda rows: threads.add(threading.current_thread()), np.empty((19, 1)))
    assert threads == {threading.current_thread()}


def test_an_error_in_another_thread_is_raised(three_threads):
    def fail_at_the_end(rows):
        if rows.stop == 300:
            raise ValueError('the last rows')

    with pytest.raises(ValueError, match='the last rows'):
        run_by_rows(fail_at_the_end, np.empty(300))


def test_share_is_the_tensor_s_memory():
    tensor = paddle.zeros([2, 3])
    share(tensor)[1, 2] = 5
    assert tensor.numpy()[1, 2] == 5
    array = share(paddle.ones([4]))         # the array keeps the tensor alive
    paddle.full([4], 7.0)
    assert array.tolist() == [1, 1, 1, 1]


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='reads /proc')
@pytest.mark.runs
def test_freed_memory_is_kept_until_it_is_released():
    code = """
        from common.machine.environment import tune_cpu
        tune_cpu()
        import paddle
        from common.machine import host_memory
        def resident():
            with open('/proc/self/statm') as file:
                return int(file.read().split()[1]) * 4096 >> 20        # MiB
        host_memory.keep_freed_memory()
        tensors = [paddle.ones([1 << 18]) for _ in range(200)]         # 1 MiB each
        full = resident()
        del tensors[1:-1]                                              # what is left frames it
        kept = resident()
        assert host_memory.release_freed_memory()
        print(full - kept, kept - resident())
        """
    done = subprocess.run([sys.executable, '-c', textwrap.dedent(code)], capture_output=True,
                          text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    freed, released = map(int, done.stdout.split())
    assert freed < 5 and released > 190
