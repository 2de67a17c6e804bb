"""The part of etcd's client that paddle.distributed.launch restarts a job with, in memory.

With one node the launcher is the only one that reads and writes, so that no server is needed.
"""

import threading
from types import SimpleNamespace


class Client:
    def __init__(self):
        self.values = {}
        self.watches = []                   # (prefix, callback)
        self.lock = threading.Lock()

    def put(self, key, value, lease=None):
        with self.lock:
            self.values[key] = value
        self._tell(key)
        return True

    def get(self, key):
        return self.values.get(key), None

    def get_prefix(self, prefix):
        with self.lock:
            return [(value, SimpleNamespace(key=key.encode()))
                    for key, value in self.values.items() if key.startswith(prefix)]

    def delete_prefix(self, prefix):
        with self.lock:
            keys = [key for key in self.values if key.startswith(prefix)]
            for key in keys:
                del self.values[key]
        for key in keys:
            self._tell(key)

    def lease(self, ttl):
        return SimpleNamespace(refresh=lambda: None)

    def add_watch_prefix_callback(self, prefix, callback):
        self.watches.append((prefix, callback))
        return len(self.watches) - 1

    def cancel_watch(self, number):
        self.watches[number] = ('nothing', None)

    def _tell(self, key):
        for prefix, callback in list(self.watches):
            if key.startswith(prefix):
                callback(key)


def client(host, port):
    return Client()
