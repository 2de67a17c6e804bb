"""Draw the curves of one or several runs: python plot.py RUN [RUN ...] [-o curves.png]"""

import sys

import project  # noqa: F401 (puts the repository on the import path)

from common.tools.plot import main

if __name__ == '__main__':
    sys.exit(main())
