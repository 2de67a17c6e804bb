"""Export T2T-ViT for paddle.inference and ONNX: `python export_model.py -h`."""

import sys

from project import PROJECT

from common.deploy.export import main

if __name__ == '__main__':
    sys.exit(main(PROJECT))
