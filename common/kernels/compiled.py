"""C sources of this project, compiled once by the system's C compiler and kept for later runs.

The results are in `kernels` of the cache folder, ~/.cache/vit-paddle, each with its SHA-256.
A library is code, so it is loaded only if nobody but this user (or root) can have written it
and its hash is right; what is damaged is made again. Nothing here needs a compiler: whoever
calls `load_library` does the same in Python where it fails. VIT_COMPILED=0 in the environment
turns all of them off.
"""

import ctypes
import hashlib
import logging
import os
import platform
import stat
import subprocess
import tempfile
from collections.abc import Mapping
from typing import TYPE_CHECKING

from common.machine.cache import cache_folder
from common.machine.environment import read_cpu

if TYPE_CHECKING:
    import numpy as np

SWITCH = 'VIT_COMPILED'
# pixels.c must round as Pillow does, which has no fused multiply-adds; row_kernels.c turns them on.
COMPILE = ('cc', '-O3', '-ffp-contract=off', '-shared', '-fPIC')
COMPILE_SECONDS = 60        # a compiler that takes longer counts as missing


logger = logging.getLogger(__name__)


class LibraryError(Exception):
    """There is no library; the text says why."""


def load_library(source: str) -> ctypes.CDLL:
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


def load_kernels(source: str, what: str, signatures: Mapping[str, tuple]) -> ctypes.CDLL | None:
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


def get_address(array: 'np.ndarray') -> int:
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
    folder = _open_cache()
    library = os.path.join(folder, name)
    if not _is_intact(library):
        with tempfile.TemporaryDirectory(dir=folder) as work:
            made = os.path.join(work, name)
            subprocess.run([*command, path, '-lm', '-o', made], check=True, capture_output=True,
                           timeout=COMPILE_SECONDS)
            ctypes.CDLL(made)                   # what cannot be loaded is not kept
            _publish(made, library)
    return library


def _open_cache():
    """Return the folder for libraries, which is made if it is missing. Raises LibraryError."""
    folder = os.path.join(cache_folder(), 'kernels')
    if not os.path.isabs(folder):
        raise LibraryError('there is no home folder to keep them in')
    os.makedirs(folder, mode=0o700, exist_ok=True)
    status = os.lstat(folder)
    if not stat.S_ISDIR(status.st_mode) or not _is_ours(status):
        raise LibraryError(f'{folder} is a link, of another user, or others may write there')
    return folder


def _is_ours(status):
    """Tell from an os.stat_result whether only this user and root can have written there."""
    if not hasattr(os, 'getuid'):               # Windows: profiles belong to their users
        return True
    return status.st_uid in (os.getuid(), 0) and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _is_intact(library):
    """Tell whether a library is there, ours, and has the hash beside it.

    One cut short would end the process with SIGBUS while it is loaded.
    """
    try:
        for path in (library, f'{library}.sha256'):
            status = os.lstat(path)
            if not stat.S_ISREG(status.st_mode) or not _is_ours(status):
                return False
        with open(f'{library}.sha256', encoding='ascii') as file:
            return file.read(65).strip() == _hash(library)
    except (OSError, ValueError):
        return False


def _hash(path):
    with open(path, 'rb') as file:
        return hashlib.sha256(file.read()).hexdigest()


def _publish(made, library):
    """Move a library and its hash to their names, durably. Several processes may do so at once.

    They make the same bytes of the same source; where a compiler does not, the hash of one does
    not fit the library of another, and the next start makes both again.
    """
    os.chmod(made, 0o600)
    with open(f'{made}.sha256', 'w', encoding='ascii') as file:
        file.write(_hash(made))
    os.chmod(f'{made}.sha256', 0o600)
    for path in (made, f'{made}.sha256'):
        with open(path, 'rb+') as file:
            os.fsync(file.fileno())
    os.replace(made, library)
    os.replace(f'{made}.sha256', f'{library}.sha256')
