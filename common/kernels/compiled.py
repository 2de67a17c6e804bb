"""C sources of this project, compiled once by the system's C compiler and kept for later runs.

The results are in the cache folder, ~/.cache/vit-paddle. Nothing here needs a compiler: whoever
calls `load_library` does the same in Python where it fails. VIT_COMPILED=0 in the environment
turns all of them off.
"""

import ctypes
import hashlib
import logging
import os
import platform
import subprocess
import tempfile

from common.machine.cache import cache_folder
from common.machine.environment import read_cpu

SWITCH = 'VIT_COMPILED'
# A fused multiply-add would round differently than separate operations do.
COMPILE = ('cc', '-O3', '-ffp-contract=off', '-shared', '-fPIC')
COMPILE_SECONDS = 60        # a compiler that takes longer is none


logger = logging.getLogger(__name__)


class LibraryError(Exception):
    """There is no library; the text says why."""


def load_library(source):
    """Return the ctypes.CDLL of a C source file. Raises LibraryError."""
    if os.environ.get(SWITCH, '1') == '0':
        raise LibraryError(f'turned off by {SWITCH}=0')
    try:
        return ctypes.CDLL(_compile(source))
    except subprocess.CalledProcessError as error:
        text = error.stderr.decode(errors='replace').strip()[:200]
        raise LibraryError(f'{COMPILE[0]}: {text}') from None
    except (OSError, subprocess.SubprocessError) as error:
        raise LibraryError(str(error)) from None


def load_kernels(source, what, signatures):
    """Return the library of a C source for callers that can do without; None, and why in the log.

    what: for the log. signatures: {function: (type of the result, types of the arguments)}.
    """
    try:
        library = load_library(source)
    except LibraryError as error:
        logger.info('Kernels for %s: none (%s). NumPy does it, more slowly.', what, error)
        return None
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def get_address(array):
    """Return where an ndarray's numbers are, for a kernel's pointer."""
    return array.__array_interface__['data'][0]


def _compile(path):
    """Return the path of the library for this source, command, C library and processor."""
    with open(path, 'rb') as file:
        source = file.read()
    # The home folder may be shared with machines that have another processor: its features
    # are part of the name, and used only where they are known.
    flags = sorted(read_cpu()[1])
    command = [*COMPILE, '-march=native'] if flags else [*COMPILE]
    key = repr((source, command, platform.machine(), platform.libc_ver(), flags))
    stem = os.path.splitext(os.path.basename(path))[0]
    name = f'{stem}-{hashlib.sha256(key.encode()).hexdigest()[:20]}.so'
    folder = cache_folder()
    library = os.path.join(folder, name)
    if not os.path.exists(library):
        os.makedirs(folder, mode=0o700, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as work:
            made = os.path.join(work, name)
            subprocess.run([*command, path, '-lm', '-o', made], check=True, capture_output=True,
                           timeout=COMPILE_SECONDS)
            os.replace(made, library)       # several processes may come here at once
    return library
