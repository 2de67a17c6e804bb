"""Print the size and the cost of every ViT config: python model_info.py [-cfg FILE]"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from ViT.config import get_config  # first: it tunes the CPU

# isort: split
from common.tools.model_info import main
from ViT.vit import build_vit

if __name__ == '__main__':
    sys.exit(main(os.path.dirname(os.path.abspath(__file__)), get_config, build_vit))
