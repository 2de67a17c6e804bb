"""Tables of names and labels: filled, from arrays, and parts of them."""

import numpy as np
import pytest

from common.data.table import MAX_NAME, SampleTable, choose_part
from common.errors import UserError


@pytest.fixture(scope='module')
def names():
    """More than 64 kB of names of every length, the empty one too."""
    rng = np.random.default_rng(0)
    return [bytes(rng.integers(1, 256, rng.integers(0, 300), dtype=np.uint8)) for _ in range(1000)]


@pytest.fixture(scope='module', params=['filled', 'from arrays'])
def table(request, names):
    table = SampleTable()
    for row, name in enumerate(names):
        table.append(name, row % 7)
    if request.param == 'from arrays':
        return SampleTable(table.names, table.lengths, table.labels)
    return table


def test_names_by_row(table, names):
    assert len(table) == 1000 and table.labels.tolist() == [row % 7 for row in range(1000)]
    assert [table.name(row) for row in range(1000)] == names == list(table.iterate_names())
    assert table.name(-1) == names[-1]
    with pytest.raises(IndexError):
        table.name(1000)


@pytest.mark.parametrize('indices', [
    np.arange(257, 900), slice(257, 900), np.arange(1000), slice(0, 0), np.array([], int),
    np.array([5, 3, 999, 3]), np.array([8])])
def test_parts(table, names, indices):
    part = table.select(indices)
    rows = np.arange(1000)[indices].tolist()
    assert list(part.iterate_names()) == [names[row] for row in rows]
    assert [part.name(row) for row in range(len(part))] == [names[row] for row in rows]
    assert part.labels.tolist() == [row % 7 for row in rows]
    assert part.select(slice(0, 1)).labels.tolist() == [row % 7 for row in rows[:1]]


def test_neighbours_are_not_copied(names):
    table = SampleTable(np.zeros(5000, np.uint8), np.full(1000, 5, np.uint16),
                        np.zeros(1000, np.int32))
    part = table.select(np.arange(10, 20))
    assert np.shares_memory(part.names, table.names)
    assert np.shares_memory(part.labels, table.labels)


def test_checksums_tell_names_and_labels_apart(table):
    other = table.replace_labels(np.zeros(1000, np.int32))
    assert other.checksum() != table.checksum() == table.select(np.arange(1000)).checksum()
    assert table.select(np.arange(999)).checksum() != table.checksum()


def test_names_that_are_too_long():
    with pytest.raises(UserError, match='65,536 bytes is too long'):
        SampleTable().append(b'x' * (MAX_NAME + 1), 0)


def test_parts_by_fraction_do_not_overlap(table):
    parts = [choose_part(table, 0.2, is_train) for is_train in (True, False)]
    assert sorted(np.concatenate(parts).tolist()) == list(range(1000))
    counts = np.bincount(table.labels[parts[1]])
    assert counts.min() >= 28 and counts.max() <= 29
