"""One option: its default, what its values may be, its flag, and its line in the tables.

Options stand in classes, one line each, and a class inside a class is a group:

    class Options(common.config.Options):
        class MODEL:
            EMBED_DIM = Option(768, above=0, help='width of the tokens')

A class that inherits adds to its base's groups; an option of the same name replaces the base's.
"""

import ast
import copy
import functools
import math
import os
import re
import reprlib
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

from common.errors import suggest

LARGEST_INTEGER = 2 ** 31 - 1       # what a C int holds: no count here is larger
MAX_TEXT = 100_000                  # characters of a value on the command line

TYPE_NAMES: dict[type, str] = {
    int: 'an integer', float: 'a number', str: 'text', bool: 'true or false', list: 'a list',
    type(None): 'nothing', dict: 'a group',
}
PLURALS: dict[type, str] = {int: 'integers', float: 'numbers', str: 'texts'}
# What the tables say of values; a page in another language brings its own.
WORDS = {
    'int': 'integer', 'float': 'number', 'str': 'text', 'bool': 'true or false', 'list': 'list',
    'list_of_int': 'list of integers', 'list_of_float': 'list of numbers',
    'list_of_str': 'list of texts', 'count_of_int': '{} integers', 'count_of_float': '{} numbers',
    'count_of_str': '{} texts', 'between': 'from {} to {}', 'at_least': '{} or more',
    'above': 'above {}', 'at_most': 'at most {}', 'below': 'below {}', 'and': ' and ',
    'choice': ', ', 'comma': ', ', 'or': ', or {}',
}


@dataclass(frozen=True)
class Option:
    """An option's default and the rules for its values.

    kind: the type of its values where None is allowed too; otherwise the default's.
    choices: the only values. also: values that are right whatever the other rules say.
    at_least, above, at_most, below: bounds of a number, or of every number in a list.
    count: length of a list. each: type of a list's items. is_range: [low, high].
    pattern: regular expression that a text must match as a whole; the help says in words, up
    to its first semicolon, what that is. Integers are taken as text.
    flag: of the command line, with its other names, if any, after blanks.
    path: 'home' for a path whose ~ stands for the home folder, also where no shell has seen it;
    'absolute' for one that later runs must find from wherever they are started.
    needs: what must hold for the option to be read, as conditions on others, all of them:
    "KEY" is neither 0, False, empty nor None; "KEY|KEY" one of them is; "KEY=a,b" has one of the
    values; "!..." the contrary.
    help: what it is, with its unit and source.
    """

    default: Any
    _: KW_ONLY
    help: str
    kind: type | None = None
    choices: tuple = ()
    also: tuple = ()
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    count: int | None = None
    each: type | None = None
    is_range: bool = False
    pattern: str = ''
    flag: str = ''
    path: str = ''
    needs: tuple[str, ...] = ()

    def with_default(self, default: Any, **changes: Any) -> 'Option':
        """Return the same option with another default, and other rules where they are given."""
        return replace(self, default=default, **changes)

    @property
    def type(self) -> type:
        """The type of the values."""
        return self.kind or type(self.default)

    @property
    def flags(self) -> list[str]:
        """The names of the flag, without dashes."""
        return self.flag.split()

    def convert(self, value: Any) -> Any:
        """Return a value from yaml, Python or the command line in the option's type.

        Raises ValueError saying what the value must be.
        """
        if value is None and self.kind is not None or isinstance(value, str) and value in self.also:
            return value
        wanted = self.type
        if isinstance(value, str) and wanted is not str:
            value = parse(value)            # yaml reads 1e-6 as text
            if value is None and self.kind is not None:
                return None
        if wanted is list and isinstance(value, str) and [value] in self.also:
            value = [value]                 # a word in place of the list
        if wanted is list and isinstance(value, (list, tuple)):
            value = [self._convert_item(item) for item in value]
        if wanted is float and type(value) is int and value.bit_length() < 1024:
            value = float(value)
        if self.pattern and type(value) is int and value.bit_length() < 64:
            value = str(value)
        if type(value) is not wanted:
            raise ValueError(f'must be {TYPE_NAMES[wanted]}, not {show(value)} '
                             f'({TYPE_NAMES.get(type(value), type(value).__name__)})')
        if self.path and value:
            value = os.path.expanduser(str(value))
            value = os.path.abspath(value) if self.path == 'absolute' else value
        return value

    def _convert_item(self, item: Any) -> Any:
        if self.each is not float or not isinstance(item, str):
            return item
        number = parse(item)
        return number if is_number(number) else item

    def find_fault(self, value: Any) -> str:
        """Return what the value, of the option's type, must be and is not; '' if it is right."""
        if value is None or value in self.also:
            return ''
        if self.choices and value not in self.choices:
            return f'unknown value {show(value)}.{suggest(value, self.choices)}'
        if isinstance(value, str):
            return self._find_fault_of_text(value)
        if isinstance(value, list):
            return self._find_fault_of_list(value)
        return '' if isinstance(value, bool) else self._find_fault_of_number(value, show(value))

    def _find_fault_of_text(self, value: str) -> str:
        if '\0' in value:
            return 'must not contain the character NUL'
        if self.pattern and not re.fullmatch(self.pattern, value):
            return f'must be {self.help.split(";")[0]}, not {show(value)}'
        return ''

    def _find_fault_of_list(self, values: list) -> str:
        if self.count is not None and len(values) != self.count:
            return f'needs {self.count} {PLURALS[self.each or float]}, not {show(values)}'
        for item in values:
            if self.each is str and not isinstance(item, str) or self.each is int and \
                    type(item) is not int or self.each is float and not is_number(item):
                plural = PLURALS[self.each]
                number = f'{self.count} ' if self.count else ''
                return f'needs {number}{plural}, not {show(values)}'
            if self.each is str and '\0' in item:
                return 'must not contain the character NUL'
            fault = '' if self.each is str else self._find_fault_of_number(item, show(values))
            if fault:
                return fault
        if self.is_range and values[0] > values[1]:
            return f'the range {show(values)} ends before it begins'
        return ''

    def _find_fault_of_number(self, number: float, shown: str) -> str:
        # Integers are compared as they are: a float cannot hold every one.
        if isinstance(number, float) and not math.isfinite(number):
            return f'must be a finite number, not {shown}'
        if (self.at_least is not None and number < self.at_least
                or self.above is not None and number <= self.above
                or self.at_most is not None and number > self.at_most
                or self.below is not None and number >= self.below):
            return f'must be {self.describe_bounds()}, not {shown}'
        if isinstance(number, int) and self.at_most is self.below is None \
                and abs(number) > LARGEST_INTEGER:
            return f'must be at most {LARGEST_INTEGER}, not {shown}'
        return ''

    def describe_bounds(self, words: Mapping[str, str] = WORDS) -> str:
        """Return the bounds in words, such as "from 0 to 1"; '' where there are none."""
        if self.at_least is not None and self.at_most is not None:
            return words['between'].format(_number(self.at_least), _number(self.at_most))
        bounds = {'at_least': self.at_least, 'above': self.above, 'at_most': self.at_most,
                  'below': self.below}
        return words['and'].join(words[name].format(_number(bound))
                                 for name, bound in bounds.items() if bound is not None)

    def describe_values(self, words: Mapping[str, str] = WORDS) -> str:
        """Return what the values may be, in a few words, for a table."""
        if self.choices:
            return words['choice'].join(str(choice) for choice in self.choices)
        name = self.type.__name__
        if self.type is list and self.each is not None:
            name = f'{"count" if self.count else "list"}_of_{self.each.__name__}'
        text = words[name].format(self.count)
        if self.describe_bounds():
            text += words['comma'] + self.describe_bounds(words)
        others = [*map(_plain, self.also), *(['none'] if self.kind is not None else [])]
        return text + ''.join(words['or'].format(other) for other in others)


def parse(text: str) -> Any:
    """Read a command-line value as Python would; anything else is text."""
    lower = text.lower()
    if lower in ('true', 'false'):
        return lower == 'true'
    if lower in ('none', 'null'):
        return None
    if len(text) > MAX_TEXT:
        return text
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return text


def is_number(value: Any) -> bool:
    """Whether a value is an integer or a float, which true and false are not here."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


class _ShortRepr(reprlib.Repr):
    """repr of a part of a value, whatever its size: yaml can make a few bytes into gigabytes."""

    def __init__(self):
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 3, 80, 80

    def repr_int(self, value, level):
        if value.bit_length() > 256:        # Python refuses to write the longest
            return f'an integer of {int(value.bit_length() * math.log10(2)) + 1} digits'
        return repr(value)


_SHORT = _ShortRepr()


def shorten(text: str, length: int = 200) -> str:
    """Return a text for a message, cut where it is longer."""
    return text if len(text) <= length else f'{text[:length]}...'


def show(value: Any) -> str:
    """Return a value for a message: its repr, cut short where it is long."""
    return _SHORT.repr(value)


def list_options(options: type) -> dict[str, Option]:
    """Return {full key, such as "TRAIN.BASE_LR": Option} of a class of options, bases first."""
    return dict(_list_options(options))         # a copy: the cached one must stay as it is


@functools.lru_cache
def _list_options(options: type) -> dict[str, Option]:
    found: dict[str, Option] = {}
    for owner in reversed(options.__mro__):
        _collect(owner, '', found)
    return found


def _collect(owner: type, prefix: str, found: dict[str, Option]) -> None:
    for name, value in vars(owner).items():
        if isinstance(value, Option):
            found[prefix + name] = value
        elif isinstance(value, type) and not name.startswith('_'):
            _collect(value, f'{prefix}{name}.', found)


def copy_default(option: Option) -> Any:
    """Return an option's default that may be changed."""
    return copy.deepcopy(option.default)


def _number(value: float) -> str:
    # A power of two says more than its digits.
    return f'2 ** {value.bit_length()} - 1' if isinstance(value, int) and \
        value > LARGEST_INTEGER and value & (value + 1) == 0 else f'{value:g}'


def _plain(value: Any) -> str:
    return '""' if value == '' else str(value)
