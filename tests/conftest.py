"""For every test: CPU settings before anything imports Paddle, and a log as at the start."""

import logging
import os
import sys

import pytest

from common.machine.environment import tune_cpu

tune_cpu()
logging.getLogger().setLevel(logging.INFO)      # what caplog sees

from common.data import pixels  # noqa: E402
from common.kernels import compiled, row_kernels  # noqa: E402

PROGRAMS = ('python', 'sh', 'bash')     # a compiler is none of them
started_programs = []


def note_program(event, arguments):
    if event == 'subprocess.Popen':
        name = os.path.basename(os.fsdecode(arguments[0]))
        if name.rstrip('0123456789.') in PROGRAMS:
            started_programs.append(name)


sys.addaudithook(note_program)


@pytest.fixture(autouse=True)
def only_marked_tests_start_programs(request):
    """Fail a test that starts a program without the mark `runs` or `slow`: the inner loop has none.

    What a fixture of wider scope starts counts for the first test that uses it.
    """
    yield
    started = started_programs.copy()
    started_programs.clear()
    if started and not any(map(request.node.get_closest_marker, ('runs', 'slow'))):
        pytest.fail(f'starts {started[0]}; mark it with @pytest.mark.runs')


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """Make what a test printed UTF-8, as pytest-xdist sends it; names of files need not be."""
    outcome = yield
    report = outcome.get_result()
    report.sections = [(title, text.encode('utf-8', 'backslashreplace').decode())
                       for title, text in report.sections]


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
