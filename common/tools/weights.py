"""The command line of weights.py: list, fetch, path."""

import logging
import sys

from common.cli import FlagParser
from common.errors import UserError, report_errors, suggest
from common.machine.cache import cache_folder
from common.machine.download import MIRROR_HINT
from common.project import Project
from common.weights import registry


def main(project: Project, argv: list[str] | None = None) -> int:
    """Run a command on the released weights of a model directory.

    argv: arguments without the script's name; None: sys.argv's. Returns the exit code: 0 done,
    1 the download failed, 2 the input is wrong.
    """
    return report_errors(_run, project, sys.argv[1:] if argv is None else argv)


def _run(project, argv):
    parser = FlagParser(
        prog='weights.py', description='Released weights: names that -pretrained takes.',
        epilog=f'Files go to {cache_folder()} (VIT_CACHE chooses another folder). {MIRROR_HINT}')
    commands = parser.add_subparsers(dest='command', required=True)
    commands.add_parser('list', help='print every name, where its file comes from, and the '
                        'licence where it restricts use')
    for command, text in (('fetch', 'download into the cache and print the path'),
                          ('path', 'print the path in the cache')):
        commands.add_parser(command, help=text).add_argument('name')
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format='%(message)s')
    released = project.list_released()
    if options.command == 'list':
        width = max((len(name) for name in released), default=0)
        for name, entry in released.items():
            state = 'cached' if registry.cached_path(name, entry) else ''
            licence = f'  ({entry.licence})' if entry.licence else ''
            print(f'{name:{width}}  {state:6}  {entry.urls[0]}{licence}')
        return
    if options.name not in released:
        raise UserError(f'{options.name}: unknown name.{suggest(options.name, released)}')
    entry = released[options.name]
    path = registry.cached_path(options.name, entry)
    if options.command == 'fetch':
        path = registry.fetch(options.name, entry)
    if path is None:
        raise UserError(f'{options.name} is not in the cache ({cache_folder()}). '
                        f'Run: python weights.py fetch {options.name}')
    print(path)
