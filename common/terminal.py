"""What a terminal shows: colours and bars, not in pipes and files, nor with TERM=dumb; and text
that may hold what others have written, which must not command the terminal.
"""

import logging
import os
import re
import shlex
from typing import IO, Any

LOGGER_NAME = 'common'          # of the project's log: every module's logger is below it
CODES = {'red': '31', 'green': '32', 'yellow': '33'}
# Controls but for line ends and tabs, line ends of Unicode, marks that turn the direction of
# writing, and bytes that are not UTF-8.
_UNSAFE = re.compile('[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069'
                     '\ud800-\udfff]')


def is_terminal(stream: IO | Any) -> bool:
    """Tell whether a stream is a terminal on which bars can move; TERM=dumb is none."""
    try:
        return bool(stream.isatty()) and os.environ.get('TERM') != 'dumb'
    except (AttributeError, ValueError, OSError):       # no stream, a closed one
        return False


def has_colours(stream: IO | Any) -> bool:
    """Tell whether a stream is a terminal with colours (NO_COLOR: https://no-color.org)."""
    return is_terminal(stream) and not os.environ.get('NO_COLOR') and os.name != 'nt'


def paint(text: str, colour: str | None, stream: IO | Any) -> str:
    """Return text in a colour of CODES, or as it is where the stream has no colours."""
    if colour is None or not has_colours(stream):
        return text
    return f'\033[{CODES[colour]}m{text}\033[0m'


def escape_controls(text: str) -> str:
    """Return text of several lines with what is no letter written as in Python: \\x1b, \\udce9."""
    return _UNSAFE.sub(lambda found: found[0].encode(
        'unicode_escape', 'backslashreplace').decode('ascii'), text)


class PlainFormatter(logging.Formatter):
    """Writes names from outside, which a message may hold, as text without commands."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the lines of a record."""
        return escape_controls(super().format(record))


def say(text: str) -> None:
    """Print text, which may hold names of files and classes, on the standard output."""
    print(escape_controls(text))


def quote_words(*words: str) -> str:
    """Return words as one line for a shell; what cannot be printed as $'...', which bash knows."""
    return ' '.join(shlex.quote(word) if word.isprintable() else _quote_bytes(word)
                    for word in words)


def _quote_bytes(word):
    text = ''.join(chr(byte) if 32 <= byte < 127 and byte not in b"'\\" else f'\\x{byte:02x}'
                   for byte in os.fsencode(word))
    return f"$'{text}'"
