"""Train or evaluate ViT in several processes: every visible GPU, or -nprocs on the CPU.

    python main_multi_gpu.py -cfg=configs/vit_base_patch16_224.yaml -data_path=/dataset/imagenet
    python main_multi_gpu.py -cfg=configs/vit_digits.yaml -device=cpu -nprocs=2
    python -m paddle.distributed.launch main_multi_gpu.py -cfg=...
"""

import sys

from project import PROJECT

from common.run.launch import run_multi

if __name__ == '__main__':
    sys.exit(run_multi(PROJECT))
