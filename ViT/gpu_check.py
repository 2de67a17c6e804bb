"""Check on this machine's GPU, or other accelerator, all that training needs: -h."""

import sys

from project import PROJECT

from common.tools.gpu_check import main

if __name__ == '__main__':
    sys.exit(main(PROJECT))
