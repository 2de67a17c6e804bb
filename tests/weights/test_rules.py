"""Copies of arrays into the model's own layout."""

import numpy as np
import pytest

from common.weights.rules import ROWS, copy_array


@pytest.mark.parametrize('shape', [(1, 1), (3, 700), (ROWS, 5), (ROWS + 1, 64), (2 * ROWS + 7, 33)])
@pytest.mark.parametrize('kinds', [('f4', 'f4'), ('f8', 'f4'), ('f2', 'f4'), ('f4', 'f8')])
def test_transposed_matrices_are_copied_exactly(shape, kinds):
    source = np.random.default_rng(0).standard_normal(shape).astype(kinds[0])
    expected = source.T.astype(kinds[1])
    target = np.empty(shape[::-1], kinds[1])
    copy_array(source.T, target)
    np.testing.assert_array_equal(target, expected)
    wide = np.full((shape[1], 3 * shape[0]), 7, kinds[1])       # one part of three, as in q, k, v
    copy_array(source.T, wide[:, shape[0]:2 * shape[0]])
    np.testing.assert_array_equal(wide[:, shape[0]:2 * shape[0]], expected)
    assert (wide[:, :shape[0]] == 7).all() and (wide[:, 2 * shape[0]:] == 7).all()


def test_other_shapes_are_refused():
    with pytest.raises(ValueError):
        copy_array(np.zeros((20, 30), 'f4').T, np.zeros((30, 19), 'f4'))
