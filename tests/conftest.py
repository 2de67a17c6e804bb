"""For every test: CPU settings before anything imports Paddle, and a log as at the start."""

import logging

import pytest

from common.environment import tune_cpu

tune_cpu()


@pytest.fixture(autouse=True)
def reset_log():
    """Undo what a run in this process did to the project's log."""
    yield
    log = logging.getLogger('common')
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
    log.propagate = True
    log.setLevel(logging.NOTSET)
