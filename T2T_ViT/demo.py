"""A web page that shows a T2T-ViT's classes and attention: `python demo.py -h`."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from T2T_ViT.main_single_gpu import PROJECT  # first: it tunes the CPU

# isort: split
from common.deploy.demo import main

if __name__ == '__main__':
    sys.exit(main(PROJECT))
