"""The errors that end a command with a message, the exit codes, and name suggestions."""

import contextlib
import difflib
import errno
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from typing import Any

from common.terminal import LOGGER_NAME, PlainFormatter, escape_controls, paint

# In the environment of processes started together: who makes this file prints its error.
FIRST_ERROR_FILE = 'VIT_FIRST_ERROR_FILE'
# Python's words, and those of Paddle's C++ library, where the system makes no further thread.
NO_THREAD = ("can't start new thread", os.strerror(errno.EAGAIN))


class UserError(Exception):
    """The user's input is wrong: the command ends with exit code 2 and this text.

    The text says what was found, where, and what to do, in one or two lines.
    """


class RunError(Exception):
    """A run failed for a reason that can be named: exit code 1 and this text."""


class Interrupted(Exception):
    """A signal ended the run after its state was saved: exit code 128 + signal number."""

    def __init__(self, number: int):
        super().__init__(f'Stopped by {signal.Signals(number).name}')
        self.exit_code = 128 + number


def report_errors(function: Callable, *arguments: Any) -> int:
    """Call the function and return an exit code, with the error on stderr.

    So is the project's log, until the function sets it up otherwise (common/run/log.py).
    """
    with _log_on_stderr():
        return _report_errors(function, *arguments)


@contextlib.contextmanager
def _log_on_stderr():
    handler = logging.StreamHandler()
    handler.setFormatter(PlainFormatter())
    logger = logging.getLogger(LOGGER_NAME)
    handlers, level = list(logger.handlers), logger.level
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        if handler in logger.handlers:      # no other log has taken its place
            logger.handlers[:] = handlers
            logger.setLevel(level)


def _report_errors(function, *arguments):
    if getattr(sys.stdout, 'errors', None) == 'strict' and hasattr(sys.stdout, 'reconfigure'):
        sys.stdout.reconfigure(errors='backslashreplace')   # an encoding without the letters
    try:
        return function(*arguments) or 0
    except UserError as error:
        _print_first(str(error))
        return 2
    except RunError as error:
        _print_first(str(error))
        return 1
    except Interrupted as stop:
        _print_first(str(stop), is_error=False)
        return stop.exit_code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Exception as error:
        limit = find_limit(error)
        _print_first(limit or traceback.format_exc(), is_error=limit is not None)
        return 1


def find_limit(error: Exception) -> str | None:
    """Return what to say of an error that comes from a limit of the system, or None."""
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return ('Too many open files. Raise the limit (ulimit -n 1024), or take fewer loader '
                'workers (-num_workers=0 needs fewest).')
    if isinstance(error, RuntimeError) and any(text in str(error) for text in NO_THREAD):
        return ('No further thread can be started: memory or the number of processes is limited '
                '(ulimit -v, ulimit -u). Raise the limit, or take fewer loader workers '
                '(-num_workers=0).')
    return None


def _mark():
    """Return "error:", in red where a terminal has colours."""
    return paint('error:', 'red', sys.stderr)


def _print_first(text, is_error=True):
    """Print an error, unless another of the spawned processes has printed one already.

    is_error: mark it as such.
    """
    text = escape_controls(text)
    path = os.environ.get(FIRST_ERROR_FILE)
    if path:
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            return
        except OSError:
            pass                            # better twice than not at all
    with contextlib.suppress(OSError, ValueError):      # the terminal is gone
        print(f'{_mark()} {text}' if is_error else text, file=sys.stderr, flush=True)


def suggest(name: str, valid_names: Iterable) -> str:
    """Return " Did you mean X?" for the nearest valid name, else the valid names.

    name: what was given. valid_names: iterable of str. The text starts with a
    space, so that it can follow a sentence.
    """
    names = sorted(str(valid) for valid in valid_names)
    by_lower_case = {valid.lower(): valid for valid in names}
    nearest = difflib.get_close_matches(str(name).lower(), by_lower_case, n=1, cutoff=0.6)
    if nearest:
        return f" Did you mean {by_lower_case[nearest[0]]}?"
    return f" Valid: {', '.join(names)}."
