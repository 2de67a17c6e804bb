"""Train ViT on a folder of pictures, in one command: `python finetune.py -h`."""

import sys

from project import PROJECT

from common.run.finetune import main

if __name__ == '__main__':
    sys.exit(main(PROJECT))
