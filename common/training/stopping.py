"""Stopping early: signals that end a run after a checkpoint, and a watchdog for hangs."""

import contextlib
import faulthandler
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence

from common.machine.distributed import is_launched

SIGNALS = ('SIGTERM', 'SIGINT', 'SIGUSR1')
LAUNCHER_REPEATS_SECONDS = 2    # paddle.distributed.launch sends SIGTERM three times, 0.2 s apart
LOOK_SECONDS = 5.0      # between two looks at signals, at most: launchers wait 30 s for the save
STANDARD_ERROR = 2


def count_updates_to_look(seconds: float, at_most: int) -> int:
    """Return after how many updates signals and losses are looked at again.

    seconds: that an update takes, the same number on every rank.
    """
    return max(1, min(at_most, int(LOOK_SECONDS / max(seconds, 1e-9))))


class StopRequest:
    """Remember the first signal, so that the loop can end at the end of an update.

    A second signal ends the process at once, other than the launcher's own repetitions of
    the first. Use as a context manager around all that must not be cut short.
    """

    def __init__(self, signals: Sequence[str] = SIGNALS) -> None:
        self.signals = signals              # names
        self.number = 0                     # of the signal; 0: none yet
        self.received = 0.0                 # when
        self.previous = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for name in self.signals:
                number = getattr(signal, name, None)        # Windows lacks some
                if number is not None:
                    self.previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception):
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _handle(self, number, frame):
        now = time.monotonic()
        if self.number and is_launched() and now - self.received < LAUNCHER_REPEATS_SECONDS:
            return
        if self.number:
            os._exit(128 + number)
        self.number, self.received = number, now
        # print is not safe in a signal handler; os.write is.
        os.write(2, b'\nStopping after this update; a second signal stops at once.\n')


class Watchdog:
    """End the process when nothing has happened for `limit` seconds.

    A rank that waits for a dead one in a collective operation cannot be interrupted
    from Python; the process prints where it hangs and exits with code 1. limit 0: off.
    A thread does it, with a message. Where a call that hangs keeps Python's lock, such as a
    blocking copy from the device, no thread of Python runs; then faulthandler's own, which
    needs no lock, does it about a third of the limit later.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.describe: Callable[[], str] | None = None      # returns details for the message
        self.last = time.monotonic()
        self.doing = 'starting'
        self.closed = None                  # an Event while there is a thread that watches
        self.armed = -math.inf              # when faulthandler's thread was last started

    def __enter__(self):
        self.armed = -math.inf
        if self.limit:
            self.closed = threading.Event()
            threading.Thread(target=self._watch, args=(self.closed,), daemon=True).start()
        self.feed(self.doing)
        return self

    def __exit__(self, *exception):
        if self.closed is not None:
            self.closed.set()
            self.closed = None
            faulthandler.cancel_dump_traceback_later()

    def feed(self, doing: str, describe: Callable[[], str] | None = None) -> None:
        """Say that work goes on, and what is done next. describe: () -> details of it."""
        self.last = time.monotonic()
        self.doing = doing
        self.describe = describe
        # Starting its thread anew takes a tenth of a millisecond, so not at every call.
        if self.closed is not None and self.last - self.armed > self.limit / 10:
            self.armed = self.last
            with contextlib.suppress(OSError, ValueError):      # there is no standard error
                faulthandler.dump_traceback_later(
                    1.35 * self.limit + 1, exit=True, file=STANDARD_ERROR)

    def _watch(self, closed):
        while not closed.wait(min(1.0, self.limit / 4)):
            idle = time.monotonic() - self.last
            if idle > self.limit:
                details = self.describe() if self.describe else ''
                # Not through sys.stderr, which may be held back to leave out Paddle's remarks.
                with contextlib.suppress(OSError, ValueError):      # there is no standard error
                    os.write(STANDARD_ERROR, (
                        f'error: no progress for {idle:.0f} s while {self.doing}; giving up. '
                        'Another process may have died, or WATCHDOG_SECONDS is too short.\n'
                        f'{details}\n').encode(errors='replace'))
                    faulthandler.dump_traceback(file=STANDARD_ERROR)
                os._exit(1)
