"""Colours and bars where a terminal shows them: not in pipes and files, nor with TERM=dumb."""

import os
from typing import IO, Any

CODES = {'red': '31', 'green': '32', 'yellow': '33'}


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
