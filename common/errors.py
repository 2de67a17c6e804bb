"""The errors that end a command with a message instead of a traceback, and name suggestions."""

import difflib


class UserError(Exception):
    """The user's input is wrong: the command ends with exit code 2 and this text.

    The text says what was found, where, and what to do, in one or two lines.
    """


class RunError(Exception):
    """A run failed for a reason that can be named: exit code 1 and this text."""


def suggest(name, valid_names):
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
