"""What a run can do without: lines, bars, pictures, tables. Its failure never ends the run."""

import contextlib
import io
import logging
import os
from collections.abc import Iterator
from typing import IO

from common.errors import Interrupted, RunError, UserError

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def go_on(what: str, said: set[str] | None = None) -> Iterator[None]:
    """Go on where the block fails, with one line in the log that `what` is missing.

    said: what has been said already, which is not said again. The errors that end a run by
    themselves are passed on.
    """
    try:
        yield
    except (UserError, RunError, Interrupted):
        raise
    except Exception as error:
        if said is None or what not in said:
            if said is not None:
                said.add(what)
            logger.warning('%s cannot be written: %s. The run goes on without.', what,
                           describe(error))


def describe(error: Exception) -> str:
    """Return the reason of a failure in one line."""
    reason = getattr(error, 'strerror', None) or str(error).strip() or type(error).__name__
    return reason.splitlines()[0].rstrip('.')


def append_line(file: IO[bytes], line: bytes) -> None:
    """Append a line to an unbuffered file, whole or not at all. Raises OSError."""
    size = file.seek(0, os.SEEK_END)
    try:
        written = file.write(line)
        if written != len(line):
            raise OSError(f'only {written} of {len(line)} bytes were written')
    except OSError:
        with contextlib.suppress(OSError):
            file.truncate(size)
        raise


def end_line(file: IO[bytes]) -> None:
    """Begin a new line where a process that was killed has left half of one. Raises OSError."""
    if file.seek(0, os.SEEK_END):
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b'\n':
            append_line(file, b'\n')


def discard_output(stream: IO[str] | None) -> None:
    """Send a stream that takes nothing any more to the null device, with what it still holds.

    Python would try to write the rest when it ends, and turn that failure into an exit code.
    """
    with contextlib.suppress(OSError, ValueError, AttributeError, io.UnsupportedOperation):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
