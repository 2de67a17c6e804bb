"""Show what a T2T-ViT attends to, its token modules too: `python visualize_attention.py -h`."""

import sys

from project import PROJECT

from common.deploy.visualize import main

if __name__ == '__main__':
    sys.exit(main(PROJECT))
