"""Remarks of Paddle's own that say nothing to the user, left out of the standard error.

Everything else that is written meanwhile appears afterwards, also where an error ends the work.
This module itself imports nothing but the standard library.
"""

import contextlib
import io
import os
import re
import sys
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def drop_remarks(pattern: str) -> Iterator[None]:
    """Leave out the lines that Python code writes and that hold a regular expression."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            yield
    finally:
        for line in said.getvalue().splitlines():
            if not re.search(pattern, line):
                print(line, file=sys.stderr)


@contextlib.contextmanager
def drop_native_remarks(pattern: str) -> Iterator[None]:
    """Leave out the lines that native code writes, straight to the file, and that hold a pattern.

    Does nothing where the standard error is no file, as in some notebooks and services.
    """
    try:
        saved = os.dup(2)
    except OSError:
        yield
        return
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            file.seek(0)
            for line in file:
                if not re.search(pattern.encode(), line):
                    os.write(2, line)
