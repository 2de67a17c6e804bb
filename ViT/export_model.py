"""Export ViT for paddle.inference and ONNX: `python export_model.py -h`."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from ViT.main_single_gpu import PROJECT  # first: it tunes the CPU

# isort: split
from common.deploy.export import main

if __name__ == '__main__':
    sys.exit(main(PROJECT))
