"""The folder for what can be fetched or made again: downloads and compiled kernels."""

import os
import sys


def cache_folder() -> str:
    """Return VIT_CACHE, or vit-paddle in the platform's folder for caches. It may not exist."""
    if os.environ.get('VIT_CACHE'):
        return os.path.abspath(os.path.expanduser(os.environ['VIT_CACHE']))
    home = os.path.expanduser('~')
    if sys.platform == 'win32':
        base = os.environ.get('LOCALAPPDATA') or os.path.join(home, 'AppData', 'Local')
    elif sys.platform == 'darwin':
        base = os.path.join(home, 'Library', 'Caches')
    else:
        base = os.environ.get('XDG_CACHE_HOME') or os.path.join(home, '.cache')
    return os.path.join(base, 'vit-paddle')
