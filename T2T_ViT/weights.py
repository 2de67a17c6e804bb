"""T2T-ViT's released weights: python weights.py list | fetch NAME | path NAME."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from common.tools.weights import main

if __name__ == '__main__':
    sys.exit(main(lambda name: name.startswith('t2t/')))
