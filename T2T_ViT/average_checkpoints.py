"""Average checkpoints of T2T-ViT into one: `python average_checkpoints.py -h`."""

import sys

from project import PROJECT

from common.tools.average_checkpoints import main

if __name__ == '__main__':
    sys.exit(main(PROJECT))
