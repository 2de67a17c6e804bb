"""Predict the classes of pictures with T2T-ViT: `python predict.py -h`."""

import sys

from project import PROJECT

from common.deploy.predict import main

if __name__ == '__main__':
    sys.exit(main(PROJECT))
