"""Write what ViT makes of pictures as arrays: `python extract_features.py -h`."""

import sys

from project import PROJECT

from common.deploy.features import main

if __name__ == '__main__':
    sys.exit(main(PROJECT))
