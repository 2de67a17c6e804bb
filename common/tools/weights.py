"""The command line of weights.py: list, fetch, path."""

import argparse
import logging
import sys

from common.errors import RunError, UserError, suggest
from common.weights import registry


def main(is_ours, arguments=None):
    """Run a command. is_ours: tells from a name whether the model directory's list has it.

    Returns the exit code: 0 done, 1 the download failed, 2 the input is wrong.
    """
    parser = argparse.ArgumentParser(
        prog='weights.py', description='Released weights: names that -pretrained takes.')
    commands = parser.add_subparsers(dest='command', required=True)
    commands.add_parser('list', help='print every name, and where its file comes from')
    for command, text in (('fetch', 'download into the cache and print the path'),
                          ('path', 'print the path in the cache')):
        commands.add_parser(command, help=text).add_argument('name')
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format='%(message)s')
    try:
        _run(options, is_ours)
    except (UserError, RunError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    return 0


def _run(options, is_ours):
    entries = {name: entry for name, entry in registry.list_entries().items() if is_ours(name)}
    if options.command == 'list':
        width = max(len(name) for name in entries)
        for name, entry in entries.items():
            state = 'cached' if registry.cached_path(name, entry) else ''
            print(f'{name:{width}}  {state:6}  {entry.urls[0]}')
        return
    if options.name not in entries:
        raise UserError(f'{options.name}: unknown name.{suggest(options.name, entries)}')
    entry = entries[options.name]
    path = registry.cached_path(options.name, entry)
    if options.command == 'fetch':
        path = registry.fetch(options.name, entry)
    if path is None:
        raise UserError(f'{options.name} is not in the cache ({registry.cache_folder()}). '
                        f'Run: python weights.py fetch {options.name}')
    print(path)
