"""What errors become at the end of a command: a line, an exit code."""

import errno
import os

import pytest

from common.errors import report_errors


@pytest.mark.parametrize('error, words', [
    (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), 'Too many open files. Raise the limit'),
    (OSError(errno.ENFILE, os.strerror(errno.ENFILE)), 'Too many open files. Raise the limit'),
    (RuntimeError("can't start new thread"), 'No further thread can be started: memory or'),
    (RuntimeError(os.strerror(errno.EAGAIN)), 'No further thread can be started: memory or')])
def test_a_limit_of_the_system_is_one_line(capsys, error, words):
    def fail():
        raise error
    assert report_errors(fail) == 1
    text = capsys.readouterr().err
    assert text.startswith(f'error: {words}') and text.count('\n') == 1
    assert 'ulimit' in text and '-num_workers=0' in text


def test_another_error_keeps_its_traceback(capsys):
    def fail():
        raise RuntimeError('of our own making')
    assert report_errors(fail) == 1
    assert 'Traceback' in capsys.readouterr().err
