"""A time after which connections are shut, whatever is waited for."""

import contextlib
import socket
import threading
import time


class Deadline:
    """Shuts the connections that it watches when its time is over. A context manager.

    A socket's own timeout is for one read. A server that sends a byte now and then, in its
    headers or in the length of a chunk, would be waited for without end.
    """

    def __init__(self, seconds: float) -> None:
        self.is_over = False
        self._end = time.monotonic() + seconds
        self._connections: list[socket.socket] = []
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._wait, daemon=True)

    def prolong(self, seconds: float) -> None:
        """Let it be so many seconds from now."""
        self._end = time.monotonic() + seconds

    def watch(self, connection: socket.socket) -> None:
        """Shut this connection, too; also under TLS, which takes the socket for itself later."""
        self._connections.append(connection.dup())
        if self.is_over:
            self._shut()

    def __enter__(self) -> 'Deadline':
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._left.set()
        self._thread.join()
        for connection in self._connections:
            connection.close()

    def _wait(self):
        while (seconds := self._end - time.monotonic()) > 0:
            if self._left.wait(seconds):
                return
        self.is_over = True
        self._shut()

    def _shut(self):
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
