"""Look over a data set before T2T-ViT trains on it: `python check_data.py -h`."""

import sys

from project import PROJECT

from common.tools.check_data import main

if __name__ == '__main__':
    sys.exit(main(PROJECT))
