"""The table of README.md, with today's figures.

python benchmarks/run.py [--peer_python PATH] [--repetitions 5] [--only train_step,memory]
"""

import argparse
import importlib
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..'))

from benchmarks import startup
from benchmarks.contest import describe_machine, print_table
from benchmarks.rows import HEAD, add_options

# Each module has measure(options) -> rows of the table.
SUBJECTS = ('evaluate', 'train_step', 'data', 'memory', 'processes', 'startup')


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    add_options(parser)
    startup.add_startup_options(parser)
    parser.add_argument('--only', default=','.join(SUBJECTS), help='of ' + ', '.join(SUBJECTS))
    options = parser.parse_args()
    print(describe_machine())
    rows = []
    for name in options.only.split(','):
        print(f'... {name}', file=sys.stderr, flush=True)
        rows += importlib.import_module(f'benchmarks.{name}').measure(options)
    print_table(HEAD, rows)


if __name__ == '__main__':
    main()
