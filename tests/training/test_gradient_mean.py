"""Means of gradients over processes, in shared memory and through Gloo."""

import os
import subprocess
import sys

import numpy as np
import pytest

from common.training.gradient_mean import split
from tests.support.paths import ROOT

pytestmark = pytest.mark.runs

needs_shared_memory = pytest.mark.skipif(
    not hasattr(os, 'memfd_create'), reason='no files in memory')


@pytest.fixture(scope='module')
def ranks(tmp_path_factory):
    """What three processes wrote."""
    folder = tmp_path_factory.mktemp('ranks')
    before = set(os.listdir('/dev/shm'))
    done = subprocess.run([sys.executable, os.path.join(ROOT, 'tests', 'support', 'mean_ranks.py'),
                           str(folder)], capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    assert not [name for name in set(os.listdir('/dev/shm')) - before if 'gradients' in name]
    return [np.load(folder / f'rank{rank}.npz') for rank in range(3)]


@needs_shared_memory
@pytest.mark.parametrize('way', ['shared', 'again', 'gloo'])
def test_every_rank_has_the_mean_of_all(ranks, way):
    expected = np.mean([rank['own'] for rank in ranks], axis=0, dtype='float64')
    for rank in ranks:
        np.testing.assert_allclose(rank[way], expected, rtol=0, atol=3e-7)
        np.testing.assert_array_equal(rank[way], ranks[0][way])


@needs_shared_memory
def test_ranks_that_share_no_memory_use_gloo(ranks):
    # Shared; not asked for; none made; not on one rank's machine; another's of the same path.
    for rank in ranks:
        assert rank['uses_slots'].tolist() == [True, False, False, False, False]
        assert rank['descriptors'].tolist() == [1]          # that of the mapping


@pytest.mark.parametrize('lengths, size', [
    ([3, 3], 3), ([7], 3), ([1, 1, 1, 1], 3), ([2, 5, 1], 4), ([0, 2, 0], 4), ([], 4)])
def test_split_covers_everything_once_and_in_order(lengths, size):
    numbers = np.arange(sum(lengths))
    arrays = np.split(numbers, np.cumsum(lengths)[:-1]) if lengths else []
    chunks = list(split(arrays, size))
    parts = [part for chunk in chunks for _, part in chunk]
    assert np.concatenate([*parts, []]).tolist() == numbers.tolist()
    for chunk in chunks:
        position = 0
        for start, part in chunk:
            assert start == position and len(part)
            position += len(part)
        assert position == size or chunk is chunks[-1]
