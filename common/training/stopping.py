"""Stopping early: signals that end a run after a checkpoint, and a watchdog for hangs."""

import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence

from common.machine.distributed import is_launched

SIGNALS = ('SIGTERM', 'SIGINT', 'SIGUSR1')
LAUNCHER_REPEATS_SECONDS = 2    # paddle.distributed.launch sends SIGTERM three times, 0.2 s apart


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
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.describe: Callable[[], str] | None = None      # returns details for the message
        self.last = time.monotonic()
        self.doing = 'starting'
        self.closed = None                  # an Event while there is a thread that watches

    def __enter__(self):
        self.feed(self.doing)
        if self.limit:
            self.closed = threading.Event()
            threading.Thread(target=self._watch, args=(self.closed,), daemon=True).start()
        return self

    def __exit__(self, *exception):
        if self.closed is not None:
            self.closed.set()

    def feed(self, doing: str, describe: Callable[[], str] | None = None) -> None:
        """Say that work goes on, and what is done next. describe: () -> details of it."""
        self.last = time.monotonic()
        self.doing = doing
        self.describe = describe

    def _watch(self, closed):
        while not closed.wait(min(1.0, self.limit / 4)):
            idle = time.monotonic() - self.last
            if idle > self.limit:
                print(f'error: no progress for {idle:.0f} s while {self.doing}; giving up. '
                      'Another process may have died, or WATCHDOG_SECONDS is too short.\n'
                      f'{self.describe() if self.describe else ""}',
                      file=sys.stderr, flush=True)
                faulthandler.dump_traceback(file=sys.stderr)
                os._exit(1)
