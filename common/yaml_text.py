"""Reading yaml from outside: every key once, and no text that grows when it is read."""

import io
import os
from typing import Any

import yaml

from common.errors import UserError
from common.files import open_regular
from common.option import shorten, show

MAX_BYTES = 1 << 19             # of a file; 21,841 class weights take half of it
MAX_VALUES = 100_000            # in all, with those that aliases repeat
MAX_DEPTH = 20                  # lists and groups inside each other


def read_yaml(path: str) -> dict[str, Any]:
    """Return the mapping in a yaml file, {} for an empty one. Raises UserError naming the place."""
    try:
        if not os.path.isfile(path) and os.path.exists(path):
            raise UserError(f'The config {shorten(path)} is not a file.')
        with open_regular(path, io.DEFAULT_BUFFER_SIZE) as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f'Cannot read the config file {shorten(path)}: {error.strerror}.') from None
    except ValueError:
        raise UserError(f'No such config file: {show(path)}.') from None     # NUL
    if len(content) > MAX_BYTES:
        raise UserError(f'{path} is larger than {MAX_BYTES >> 10} kB, which no config is.')
    try:
        text = content.decode('utf-8')
    except UnicodeDecodeError:
        raise UserError(f'{path} is not a yaml text file.') from None
    return parse_yaml(text, path)


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """Return the mapping in a yaml text, {} for an empty one.

    source: what messages call it. Raises UserError for what is not yaml or no mapping, for a
    key that is given twice, and for a text that unfolds to more than a config can be.
    """
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is not None:
                _check_size(node, source)
            tree = None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise UserError(f'{source}{_locate(error)}: {_shorten(error)}.') from None
    except RecursionError:
        raise UserError(f'{source}: lists and groups stand deeper inside each other than '
                        f'{MAX_DEPTH}.') from None
    except (ValueError, OverflowError) as error:    # a number or date that Python cannot hold
        problem = 'a number has too many digits' if 'digits' in str(error) else str(error)[:100]
        raise UserError(f'{source}: {problem}.') from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f'{source}: expected "KEY: value" lines, found a {type(tree).__name__}.')
    return tree


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key which a mapping has already."""

    def construct_mapping(self, node, deep=False):
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.value == '<<':
                continue
            if key.value in lines:
                raise yaml.constructor.ConstructorError(
                    None, None, f'{show(key.value)[1:-1]} is given twice, first in line '
                    f'{lines[key.value]}', key.start_mark)
            lines[key.value] = key.start_mark.line + 1
        return super().construct_mapping(node, deep)


def _check_size(root, source):
    """Raise UserError if a node, with all that its aliases repeat, is too large or too deep."""
    sizes: dict[int, int] = {}

    def measure(node, depth):
        if depth > MAX_DEPTH:
            raise RecursionError
        if id(node) not in sizes:
            sizes[id(node)] = MAX_VALUES + 1        # for an alias of what it stands in
            children = []
            if isinstance(node, yaml.MappingNode):
                children = [part for pair in node.value for part in pair]
            elif isinstance(node, yaml.SequenceNode):
                children = node.value
            sizes[id(node)] = 1 + sum(measure(child, depth + 1) for child in children)
        return sizes[id(node)]

    if measure(root, 0) > MAX_VALUES:
        raise UserError(f'{source} unfolds to more than {MAX_VALUES:,} values, which no config '
                        'has.')


def _locate(error):
    mark = getattr(error, 'problem_mark', None)
    return f', line {mark.line + 1}' if mark else ''


def _shorten(error):
    return shorten(getattr(error, 'problem', None) or 'not yaml')
