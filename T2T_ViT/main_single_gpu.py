"""Train or evaluate T2T-ViT in one process: on a GPU, or on the CPU where there is none.

    python main_single_gpu.py -cfg=configs/t2t_vit_digits.yaml
    python main_single_gpu.py -h
"""

import os
import sys

FOLDER = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(FOLDER))

from common.run.launch import Project, run_single
from T2T_ViT.config import get_config
from T2T_ViT.datasets import get_dataset
from T2T_ViT.t2t_vit import build_t2t_vit

PROJECT = Project('T2T-ViT', FOLDER, get_config, get_dataset, build_t2t_vit,
                  example_configs=('t2t_vit_digits', 't2t_vit_14'))

if __name__ == '__main__':
    sys.exit(run_single(PROJECT))
