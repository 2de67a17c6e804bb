"""T2T-ViT's released weights: python weights.py list | fetch NAME | path NAME."""

import sys

from project import PROJECT

from common.tools.weights import main

if __name__ == '__main__':
    sys.exit(main(PROJECT))
