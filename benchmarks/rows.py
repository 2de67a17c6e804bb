"""What the scripts of the table share: options, contestants, ratios."""

import argparse
import sys
from functools import partial

from benchmarks.contest import Contestant, compare, describe_machine, print_table

HEAD = ('what', 'peer', 'ours', 'peer\'s', 'ratio', 'target')


def add_options(parser):
    parser.add_argument('--peer_python', default=sys.executable,
                        help='the Python that has benchmarks/requirements.txt')
    parser.add_argument('--repetitions', type=int, default=5)
    parser.add_argument('--batch_size', type=int, default=8)


def ours(*arguments):
    """Return a function that starts this project as a contestant."""
    return partial(Contestant, sys.executable, 'ours.py', *arguments)


def peer(options, *arguments):
    """Return a function that starts a peer as a contestant."""
    return partial(Contestant, options.peer_python, 'peers.py', *arguments)


def compare_rows(title, contestants, options, targets):
    """Measure, and return one row a contestant beside "ours": speeds and their ratio.

    targets: {contestant: the ratio aimed at}.
    """
    results, failed = compare(contestants, options.repetitions)
    rows = [(title, name, '', f'not measured: {reason}', '', targets.get(name, ''))
            for name, reason in failed.items()]
    for name, result in results.items():
        if name != 'ours' and 'ours' in results:
            mine = results['ours']
            rows.append((title, name, f'{options.batch_size / mine.wall:.2f}/s',
                         f'{options.batch_size / result.wall:.2f}/s',
                         f'{result.wall / mine.wall:.2f} (CPU {result.cpu / mine.cpu:.2f})',
                         targets.get(name, '')))
    return rows


def main(text, measure):
    """Run one script of the table alone."""
    parser = argparse.ArgumentParser(description=text.split('\n')[0])
    add_options(parser)
    options = parser.parse_args()
    print(describe_machine())
    print_table(HEAD, measure(options))
