"""A web page that shows a ViT's classes and attention: `python demo.py -h`."""

import sys

from project import PROJECT

from common.deploy.demo import main

if __name__ == '__main__':
    sys.exit(main(PROJECT))
