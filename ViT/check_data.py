"""Check a data set before training: `python check_data.py -h`."""

import sys

from project import PROJECT

from common.tools.check_data import main

if __name__ == '__main__':
    sys.exit(main(PROJECT))
