"""Show what a T2T-ViT attends to, its token modules too: `python visualize_attention.py -h`."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from T2T_ViT.main_single_gpu import PROJECT  # first: it tunes the CPU

# isort: split
from common.deploy.visualize import main
from T2T_ViT.token_attention import list_token_modules

if __name__ == '__main__':
    sys.exit(main(PROJECT, list_token_modules))
