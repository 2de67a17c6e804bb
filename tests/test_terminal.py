"""Colours where a terminal shows them, and nowhere else."""

import ast
import io
import logging
import sys

import pytest

from common.errors import UserError, report_errors
from common.run.log import _TerminalHandler
from common.terminal import has_colours, is_terminal, paint
from tests.support.paths import ROOT


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def colourful(monkeypatch):
    monkeypatch.delenv('NO_COLOR', raising=False)
    monkeypatch.setenv('TERM', 'xterm-256color')
    return monkeypatch


def test_a_terminal_has_colours(colourful):
    assert paint('error:', 'red', Terminal()) == '\033[31merror:\033[0m'
    assert paint('plain', None, Terminal()) == 'plain'


@pytest.mark.parametrize('name, value', [('NO_COLOR', '1'), ('TERM', 'dumb')])
def test_colours_can_be_turned_off(colourful, name, value):
    colourful.setenv(name, value)
    assert paint('error:', 'red', Terminal()) == 'error:'


def test_pipes_and_closed_streams_have_none(colourful):
    closed = Terminal()
    closed.close()
    for stream in (io.StringIO(), None, io.TextIOWrapper(io.BytesIO())):
        assert paint('x', 'red', stream) == 'x'
    colourful.setattr(closed, 'isatty', lambda: closed.read(), raising=False)
    assert not has_colours(closed)


def test_every_bar_is_shown_by_the_same_rule(colourful):
    assert is_terminal(Terminal())
    colourful.setenv('TERM', 'dumb')
    assert not is_terminal(Terminal())
    bars = 0
    for path in (ROOT / 'common').rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'tqdm':
                bars += 1
                asked = [ast.unparse(word.value) for word in node.keywords
                         if word.arg == 'disable']
                # RunLog makes its bar behind the same question; predict.py has a flag more.
                assert asked in (['not is_terminal(sys.stderr)'], ['not show_bar']) or \
                    path.name == 'log.py', (path, ast.unparse(node))
    assert bars > 8


@pytest.mark.parametrize('stream_type', [Terminal, io.StringIO])
def test_errors_and_log_lines(colourful, stream_type):
    streams = stream_type(), stream_type()
    colourful.setattr(sys, 'stderr', streams[0])
    colourful.setattr(sys, 'stdout', streams[1])

    def fail():
        raise UserError('no such file')
    assert report_errors(fail) == 2
    log = logging.Logger('colours')
    log.addHandler(_TerminalHandler())
    log.info('a line')
    log.warning('look')
    log.info('Done', extra={'colour': 'green'})
    is_coloured = stream_type is Terminal
    assert streams[0].getvalue() == ('\033[31merror:\033[0m' if is_coloured else 'error:') + \
        ' no such file\n'
    expected = 'a line\n\033[33mlook\033[0m\n\033[32mDone\033[0m\n' if is_coloured else \
        'a line\nlook\nDone\n'
    assert streams[1].getvalue() == expected
