"""Converts T2T-ViT weights of any known format: python convert_weights.py FILE -o OUT [-to ...]."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from common.tools.convert_weights import main

if __name__ == '__main__':
    sys.exit(main(('paddle', 't2t')))
