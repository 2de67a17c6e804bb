"""Print the size and the cost of every T2T-ViT config: python model_info.py [-cfg FILE]"""

import sys

from project import PROJECT

from common.tools.model_info import main

if __name__ == '__main__':
    sys.exit(main(PROJECT))
