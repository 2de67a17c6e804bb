"""Train or evaluate T2T-ViT in one process: on a GPU, or on the CPU where there is none.

    python main_single_gpu.py -cfg=configs/t2t_vit_digits.yaml
    python main_single_gpu.py -h
"""

import sys

from project import PROJECT

from common.run.launch import run_single

if __name__ == '__main__':
    sys.exit(run_single(PROJECT))
