"""Order of samples: permutations, disjoint ranks, any position, and one process against two."""

from itertools import islice

import numpy as np
import pytest

from common.data.sampler import EvalBatches, TrainBatches, shuffle_epoch
from common.errors import UserError


def flatten(batches):
    return [key for batch in batches for key in batch]


def test_every_epoch_is_another_permutation():
    batches = list(islice(TrainBatches(20, 5, seed=1), 12))
    epochs = [flatten(batches[4 * epoch:4 * epoch + 4]) for epoch in range(3)]
    for epoch, keys in enumerate(epochs):
        assert {key[0] for key in keys} == {epoch}
        assert sorted(key[1] for key in keys) == list(range(20))
    orders = [[key[1] for key in keys] for keys in epochs]
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_seed_decides_the_order():
    first = flatten(islice(TrainBatches(50, 10, seed=3), 5))
    assert first == flatten(islice(TrainBatches(50, 10, seed=3), 5))
    assert first != flatten(islice(TrainBatches(50, 10, seed=4), 5))
    expected = np.random.Generator(
        np.random.PCG64(np.random.SeedSequence([3, 0]))).permutation(50)
    assert [index for _, index in first] == expected.tolist()
    assert all(type(index) is int for _, index in first)


def test_the_rest_of_an_epoch_is_dropped():
    batches = TrainBatches(23, 4, seed=0, world_size=2)
    assert batches.batches_per_epoch == 2
    keys = [flatten(islice(TrainBatches(23, 4, 0, rank, 2), 2)) for rank in range(2)]
    indices = [index for key in keys for _, index in key]
    assert len(set(indices)) == len(indices) == 16


def test_ranks_are_disjoint_and_cover_the_epoch():
    shares = [flatten(islice(TrainBatches(24, 2, 0, rank, 3), 4)) for rank in range(3)]
    assert sorted(index for share in shares for _, index in share) == list(range(24))


def test_two_processes_see_the_global_batches_of_one():
    one = list(islice(TrainBatches(100, 8, seed=5), 30))
    ranks = [list(islice(TrainBatches(100, 4, 5, rank, 2), 30)) for rank in range(2)]
    assert one == [first + second for first, second in zip(*ranks)]


@pytest.mark.parametrize('start', [0, 1, 3, 4, 5, 9, 4_000_001])
def test_starts_at_any_position(start):
    batches = islice(TrainBatches(20, 5, seed=1).slice(start), 6)
    epoch, batch = divmod(start, 4)
    expected = []
    for number in range(epoch, epoch + 3):
        order = shuffle_epoch(20, 1, number).tolist()
        expected += [[(number, i) for i in order[first:first + 5]] for first in range(0, 20, 5)]
    assert list(batches) == expected[batch:batch + 6]


@pytest.mark.parametrize('start, stop', [(0, 0), (0, 3), (0, 4), (0, 11), (3, 11), (7, 8), (9, 5)])
def test_stops_where_told(start, stop):
    batches = TrainBatches(20, 5, seed=1).slice(start, stop)
    assert list(batches) == list(islice(TrainBatches(20, 5, 1).slice(start), max(0, stop - start)))
    assert len(batches) == max(0, stop - start)


def test_endless_has_no_length():
    with pytest.raises(TypeError):
        len(TrainBatches(20, 5, seed=1))


@pytest.mark.parametrize('world_size', [1, 3])
def test_fewer_samples_than_a_batch(world_size):
    with pytest.raises(UserError, match=r'8 training images are fewer.*BATCH_SIZE 9 x'):
        TrainBatches(8, 9, seed=0, world_size=world_size)


@pytest.mark.parametrize('world_size', [1, 2, 3, 7])
@pytest.mark.parametrize('batch_size', [1, 4, 64])
def test_evaluation_takes_every_sample_once(world_size, batch_size):
    shares = []
    for rank in range(world_size):
        batches = EvalBatches(13, batch_size, rank, world_size)
        shares += [flatten(batches)]
        assert len(batches) == len(list(batches))
        assert all(0 < len(batch) <= batch_size for batch in batches)
    assert sorted(index for share in shares for _, index in share) == list(range(13))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_evaluation_with_fewer_samples_than_processes():
    assert [list(EvalBatches(1, 4, rank, 2)) for rank in range(2)] == [[[(0, 0)]], []]


def test_repeated_augmentation_draws_each_sample_in_a_row():
    """Three times, with another first number, so that each is augmented otherwise."""
    batches = TrainBatches(20, 4, seed=3, repeats=3).slice(0, 10)
    first, second = (list(islice(part, 5)) for part in (batches, batches.slice(5, 10)))
    entries = [entry for batch in first for entry in batch]
    assert len(entries) == 20 and len({index for _, index in entries}) == 7
    order = shuffle_epoch(20, 3, 0)
    assert entries[:6] == [(k, int(order[place])) for place in (0, 1) for k in range(3)]
    assert {draw for batch in second for draw, _ in batch} == {3, 4, 5}
    # Two processes see what one sees with twice the batch; a run may begin anywhere.
    halves = [list(TrainBatches(20, 2, 3, rank, 2, repeats=3).slice(0, 5)) for rank in (0, 1)]
    assert [a + b for a, b in zip(*halves)] == first
    assert list(TrainBatches(20, 4, seed=3, repeats=3).slice(3, 7)) == [*first[3:], *second[:2]]
