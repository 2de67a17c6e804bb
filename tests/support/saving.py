"""What the tests of checkpoints share: saving once, and a log that can be read."""

import os

import numpy as np

from common.checkpoints.store import CheckpointStore


def make_progress(update, epoch=None, loss=None, **others):
    return {'epoch': update if epoch is None else epoch, 'update': update,
            'loss': 1 / (1 + update) if loss is None else loss, 'model_name': 'tiny',
            'learning_rate': 0.01, 'world_size': 1, **others}


def save(folder, run, update, keep=2, is_best=False, **others):
    """Save once and wait; returns the path."""
    store = CheckpointStore(folder, keep)
    path = store.save(run, make_progress(update, **others), is_best)
    store.wait()
    return path


def assert_same(found, expected):
    assert set(found) == set(expected)
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def list_files(folder):
    return sorted(os.listdir(folder))


class Log:
    """A logger whose lines a test can read."""

    def __init__(self):
        self.lines = []
        for level in ('info', 'warning', 'error'):
            setattr(self, level, self._add)

    def _add(self, text, *values):
        self.lines.append(text % values)

    @property
    def text(self):
        return '\n'.join(self.lines)
