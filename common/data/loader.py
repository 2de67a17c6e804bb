"""Batches from a data set, made by worker processes (paddle.io.DataLoader).

The workers start once and run for as long as the sampler does. They use NumPy
and Pillow only: Paddle's and OpenMP's threads do not survive the fork.
"""

import atexit
import json
import logging
import mmap
import os
import signal
import threading
import time
import traceback

import numpy as np
import paddle

from common.data.images import ImageError
from common.errors import RunError
from common.machine.host_memory import keep_freed_memory

SHARED_MEMORY = '/dev/shm'
PREFETCH = 2                # batches under way for each worker

logger = logging.getLogger(__name__)


class LoaderError(RunError):
    """A worker process died, or failed otherwise than at an unreadable image."""


def build_loader(dataset, batches, config, num_workers=None):
    """Return a Loader of `dataset` in the order of `batches` (common.data.sampler).

    num_workers: number of processes; None: DATA.NUM_WORKERS; 0: load in this process.
    """
    if num_workers is None:
        num_workers = config.DATA.NUM_WORKERS
    use_shared_memory = config.DATA.USE_SHARED_MEMORY
    if num_workers and use_shared_memory:
        use_shared_memory = _has_shared_memory(
            batches.batch_size, num_workers, config.DATA.IMAGE_SIZE)
    return Loader(dataset, batches, num_workers, use_shared_memory)


class Loader:
    """Iterate over (images uint8 [B, S, S, 3], labels int64 [B], indices int64 [B]) tensors.

    An unreadable image raises ImageError with its path, a worker that dies
    LoaderError with the path it was reading. `skipped` maps the paths that
    SKIP_CORRUPT replaced to how often. Each `iter()` starts the workers; `close()`
    ends them.
    """

    def __init__(self, dataset, batches, num_workers, use_shared_memory):
        self.batches = batches
        self.num_workers = num_workers
        self.skipped = {}
        self._reader = _SampleReader(dataset, num_workers)
        self._iterator = None
        self._loader = None
        if num_workers:
            self._loader = paddle.io.DataLoader(
                self._reader, batch_sampler=batches, collate_fn=_collate, return_list=True,
                num_workers=num_workers, use_shared_memory=use_shared_memory,
                prefetch_factor=PREFETCH, worker_init_fn=self._reader.start_worker)
            atexit.register(self.close)

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        if not self.num_workers:
            for keys in self.batches:
                arrays = self._unpack(_collate([self._reader[key] for key in keys]))
                yield tuple(paddle.to_tensor(array) for array in arrays)
            return
        self._start_workers()
        try:
            while True:
                try:
                    batch = next(self._iterator)
                except StopIteration:
                    return
                except SystemError as error:        # Paddle's queue was closed under us
                    raise LoaderError(self._describe_death()) from error
                yield tuple(self._unpack(batch))
        finally:
            self.close()

    def close(self):
        """End the workers."""
        iterator, self._iterator = self._iterator, None
        if iterator is not None:
            self._reader.let_workers_end()
            iterator._try_shutdown_all(1)

    def describe_workers(self):
        """Return what each worker is reading at the moment, one line each."""
        return '\n'.join(
            f'loader worker {worker}: {self._reader.describe_progress(worker)}'
            for worker in range(self.num_workers))

    def _start_workers(self):
        self.close()
        self._reader.keep_workers()
        in_main_thread = threading.current_thread() is threading.main_thread()
        previous = signal.getsignal(signal.SIGCHLD)
        self._iterator = iter(self._loader)
        if in_main_thread:
            # Paddle's handler raises wherever the program happens to be; `__iter__` does in one
            # place, and knows the sample's path.
            signal.signal(signal.SIGCHLD, previous or signal.SIG_DFL)

    def _unpack(self, batch):
        *tensors, report = batch
        report = json.loads(report)
        for path in report['skipped']:
            self.skipped[path] = self.skipped.get(path, 0) + 1
        if report['error']:
            raise ImageError(f'{report["error"]}\nDelete the file, or go on without such images: '
                             '-opts DATA.SKIP_CORRUPT True. check_data.py lists them all.')
        if report['failure']:
            raise LoaderError(report['failure'])
        return tensors

    def _describe_death(self):
        workers = self._iterator._workers if self._iterator is not None else []
        lines = []
        for number, worker in enumerate(workers):
            if not worker.is_alive():
                code = worker.exitcode
                how = f'exit code {code}'
                if code is not None and code < 0:
                    how = f'signal {-code}' + (', often out of memory' if code == -9 else '')
                lines.append(
                    f'Loader worker {number} died ({how}) while reading '
                    f'{self._reader.describe_progress(number)}.')
        return '\n'.join(lines) or 'The data loader ended unexpectedly.'


class _SampleReader(paddle.io.Dataset):
    """What the workers run: reads samples, reports errors as values, notes its progress."""

    def __init__(self, dataset, num_workers):
        super().__init__()
        self.dataset = dataset
        self.worker = 0
        self.parent = os.getpid()
        # Shared with the workers: [closing, then epoch and index for each worker].
        memory = mmap.mmap(-1, 8 * (1 + 2 * max(1, num_workers)))
        self.shared = np.frombuffer(memory, np.int64)
        self.shared[1:] = -1

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, key):
        self.shared[1 + 2 * self.worker:3 + 2 * self.worker] = key
        try:
            image, label, index = self.dataset[key]
        except ImageError as error:
            return {'error': str(error)}
        except Exception:           # a mistake of ours: the traceback must reach the log
            return {'failure': f'{self.dataset.describe_sample(key[1])} (epoch {key[0]}): '
                               f'{traceback.format_exc()}'}
        skipped = []
        if index != key[1]:
            count = (index - key[1]) % len(self.dataset)
            skipped = [(key[1] + step) % len(self.dataset) for step in range(count)]
        return image, label, index, [self.dataset.describe_sample(i) for i in skipped]

    def start_worker(self, worker):
        """Prepare a worker process: signals meant for the training process do not end it."""
        self.worker = worker
        keep_freed_memory()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._end_if_closing)
        # Paddle's workers wait without a timeout, for ever if the training process was killed.
        threading.Thread(target=self._end_with_parent, daemon=True).start()

    def keep_workers(self):
        self.shared[0] = 0
        self.parent = os.getpid()

    def let_workers_end(self):
        self.shared[0] = 1

    def describe_progress(self, worker):
        epoch, index = self.shared[1 + 2 * worker:3 + 2 * worker].tolist()
        if index < 0:
            return 'nothing yet'
        return f'{self.dataset.describe_sample(index)} (epoch {epoch})'

    def _end_if_closing(self, signum, frame):
        if self.shared[0]:
            os._exit(0)

    def _end_with_parent(self):
        while os.getppid() == self.parent:
            time.sleep(1)
        os._exit(1)


def _collate(samples):
    """Return [images, labels, indices, report], report being text that Paddle passes through."""
    report = {'error': None, 'failure': None, 'skipped': []}
    for sample in samples:
        if isinstance(sample, dict):
            blank = np.zeros(1, np.int64)
            return [blank.astype(np.uint8), blank, blank, json.dumps({**report, **sample})]
        report['skipped'] += sample[3]
    images, labels, indices, _ = zip(*samples)
    return [np.stack(images), np.array(labels, np.int64), np.array(indices, np.int64),
            json.dumps(report)]


def _has_shared_memory(batch_size, num_workers, image_size):
    """Tell whether /dev/shm has room for the batches under way; say so when it has not."""
    if not os.path.isdir(SHARED_MEMORY):
        return False
    stats = os.statvfs(SHARED_MEMORY)
    free = stats.f_bavail * stats.f_frsize
    batch_bytes = batch_size * image_size ** 2 * 3
    needed = batch_bytes * (PREFETCH * num_workers + 2)
    if free >= needed:
        return True
    logger.warning(
        'Loader: %s has %d MB free and %d MB are needed; batches go through pipes instead, which '
        'is slower.', SHARED_MEMORY, free >> 20, needed >> 20)
    return False
