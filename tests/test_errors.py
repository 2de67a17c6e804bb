"""What errors become at the end of a command: a line, an exit code."""

import errno
import logging
import os

import pytest

from common.errors import report_errors
from common.run.log import hold_log, start_logging


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


def test_the_log_is_shown_until_it_is_set_up_otherwise(capsys):
    log = logging.getLogger('common.data')

    def work():
        log.info('%s', 'a \x1b name')
        start_logging()
        log.warning('b')

    for _ in range(2):
        report_errors(log.info, 'c')
    assert report_errors(work) == 0
    out, err = capsys.readouterr()
    assert err.splitlines() == ['c', 'c', r'a \x1b name']
    line, = out.splitlines()
    assert line.endswith(' b')


def test_another_log_is_back_after_it_and_one_that_is_held_is_not_shown(capsys):
    log, own = logging.getLogger('common'), logging.NullHandler()
    log.addHandler(own)
    report_errors(log.info, 'a')
    assert log.handlers == [own] and log.level == logging.NOTSET

    def hold():
        hold_log()
        log.info('b')

    report_errors(hold)
    assert capsys.readouterr().err == 'a\n'
