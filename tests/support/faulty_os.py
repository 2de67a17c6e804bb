"""A disk that fails: `os` for common.checkpoints.file, with a fault at a chosen call."""

import errno
import mmap
import os
import signal
import time

CALLS = ('open', 'write', 'fsync', 'replace', 'link', 'remove')


class FaultyOs:
    """`os`, in which call number `at` (from 1) of `function` goes wrong.

    function: one of CALLS, or "any" of them. at: 0 means every call. error: an errno;
    "short" (a part is written), "nothing" (0 bytes are), "lost" (the disk says yes and
    stores zeros), "cut" (it says yes and stores nothing), "slow" (the call takes
    20 ms) or "kill" (SIGKILL, before the call).
    """

    def __init__(self, function, at, error):
        self.functions = CALLS if function == 'any' else (function,)
        self.at = at
        self.error = error
        self.calls = 0

    def __getattr__(self, name):
        real = getattr(os, name)
        if name not in self.functions:
            return real

        def call(*arguments, **keywords):
            self.calls += 1
            if self.at not in (0, self.calls):
                return real(*arguments, **keywords)
            if self.error == 'short':           # at a block's end, as with O_DIRECT
                return real(arguments[0], arguments[1][:len(arguments[1]) // 8192 * 4096 or 1])
            if self.error == 'nothing':
                return 0
            if self.error == 'lost':
                return real(arguments[0], mmap.mmap(-1, len(arguments[1])))
            if self.error == 'cut':
                return len(arguments[1])
            if self.error == 'kill':
                os.kill(os.getpid(), signal.SIGKILL)
            if self.error == 'slow':
                time.sleep(0.02)
                return real(*arguments, **keywords)
            raise OSError(self.error, os.strerror(self.error))
        return call


def parse_fault(text):
    """Return the FaultyOs for "FUNCTION:CALL:ERROR", such as "write:3:ENOSPC"."""
    function, at, error = text.split(':')
    return FaultyOs(function, int(at), getattr(errno, error, error))
