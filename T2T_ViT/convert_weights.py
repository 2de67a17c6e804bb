"""Converts T2T-ViT weights of any known format: python convert_weights.py FILE -o OUT [-to ...]."""

import sys

from project import PROJECT

from common.tools.convert_weights import main

if __name__ == '__main__':
    sys.exit(main(PROJECT))
