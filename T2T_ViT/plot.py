"""Draw the curves of one or several runs: python plot.py RUN [RUN ...] [-o curves.png]"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from common.tools.plot import main

if __name__ == '__main__':
    sys.exit(main())
