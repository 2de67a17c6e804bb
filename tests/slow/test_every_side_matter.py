"""Lines, bars, pictures and tables made to fail at every call in turn: the same weights."""

import pytest

from tests.support.colours import make_colours
from tests.support.side_faults import SINKS, run, try_fault

pytestmark = pytest.mark.slow


@pytest.mark.parametrize('always', [True, False])
@pytest.mark.parametrize('sink', SINKS)
def test_every_call(sink, always, tmp_path, monkeypatch):
    data = make_colours(tmp_path / 'data')
    right, _ = run(data, tmp_path / 'right')
    calls = try_fault(sink, None, True, data, tmp_path / 'none', monkeypatch)[0].calls
    for first in range(1, calls + 1):
        fault, weights, _ = try_fault(sink, first, always, data, tmp_path / str(first), monkeypatch)
        assert weights == right, first
        assert fault.failures > 0 or sink == 'stderr'       # a bar is drawn by the clock
