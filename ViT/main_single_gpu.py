"""Train or evaluate ViT in one process: on a GPU, or on the CPU where there is none.

    python main_single_gpu.py -cfg=configs/vit_digits.yaml
    python main_single_gpu.py -h
"""

import os
import sys

FOLDER = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(FOLDER))

from common.run.launch import Project, run_single
from ViT.config import get_config
from ViT.datasets import get_dataset
from ViT.vit import build_vit

PROJECT = Project('ViT', FOLDER, get_config, get_dataset, build_vit,
                  example_configs=('vit_digits', 'vit_base_patch16_224'))

if __name__ == '__main__':
    sys.exit(run_single(PROJECT))
