"""Show what a ViT attends to: `python visualize_attention.py -h`."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from ViT.main_single_gpu import PROJECT  # first: it tunes the CPU

# isort: split
from common.deploy.visualize import main

if __name__ == '__main__':
    sys.exit(main(PROJECT))
