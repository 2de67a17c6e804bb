"""Print the size and the cost of every T2T-ViT config: python model_info.py [-cfg FILE]"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from T2T_ViT.config import get_config  # first: it tunes the CPU before Paddle is imported

# isort: split
from common.tools.model_info import main
from T2T_ViT.t2t_vit import build_t2t_vit

if __name__ == '__main__':
    sys.exit(main(str(Path(__file__).resolve().parent), get_config, build_t2t_vit))
