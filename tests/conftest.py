"""For every test: CPU settings before anything imports Paddle, and a log as at the start."""

import logging

import pytest

from common.machine.environment import tune_cpu

tune_cpu()

from common.data import pixels  # noqa: E402
from common.kernels import compiled, row_kernels  # noqa: E402


@pytest.fixture
def empty_library_cache(monkeypatch, tmp_path):
    """In this test C sources are compiled, and their kernels loaded, anew."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    forget_kernels()
    yield
    forget_kernels()


@pytest.fixture(params=['kernels', 'off'])
def way(request, monkeypatch):
    """With the compiled kernels and without them."""
    if request.param == 'off':
        monkeypatch.setenv(compiled.SWITCH, '0')
    forget_kernels()
    yield request.param
    forget_kernels()


def forget_kernels():
    for module in (row_kernels, pixels):
        module.load_kernels.cache_clear()


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
