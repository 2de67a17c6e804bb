"""A run whose state several tests save."""

import pytest

from tests.support.tiny_run import build_run, train


@pytest.fixture(scope='module')
def trained_run():
    run = build_run(width=6000)
    train(run, 0, 3)
    return run
