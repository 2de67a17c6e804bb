"""Batches from a data set, made by worker processes (paddle.io.DataLoader).

The workers start once and run for as long as the sampler does. They use NumPy
and Pillow only: Paddle's and OpenMP's threads do not survive the fork.
"""

import atexit
import json
import logging
import mmap
import multiprocessing
import multiprocessing.queues
import multiprocessing.util
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import paddle
from paddle.io.dataloader.dataloader_iter import _DataLoaderIterMultiProcess
from yacs.config import CfgNode

from common.data import shared_files
from common.data.images import ImageError
from common.data.sampler import EvalBatches, TrainBatches
from common.errors import RunError
from common.machine.distributed import get_world_size
from common.machine.environment import count_cores, count_sharing
from common.machine.host_memory import keep_freed_memory

PREFETCH = 2                # batches under way for each worker
ORPHAN_SECONDS = 10         # that a worker without a training process has, to end in order
WORKERS_ON_CPU = 2
MOST_WORKERS = 16           # that "auto" starts for one device
LONG_WAIT = 0.05            # share of the time, from which on something should be changed

UNSENT = 3                  # exit code of a worker whose batch does not reach the training process
USUAL_CAUSES = {            # by exit code
    -9: ', often out of memory',
    -7: f', often because {shared_files.FOLDER} is full: -opts DATA.USE_SHARED_MEMORY False',
    UNSENT: ', its batch could not be handed over, often because of too many open files: '
            'ulimit -n 1024, or -num_workers=0'}

Batches = TrainBatches | EvalBatches
# (number of the batch, shape of its images, indices of its samples) -> arrays.
Draw = Callable[[int, tuple[int, ...], np.ndarray], list[np.ndarray]]
logger = logging.getLogger(__name__)

# Paddle asks for it when an iterator is deleted, also of one whose start failed before it was set.
_DataLoaderIterMultiProcess._shutdown = True


class LoaderError(RunError):
    """A worker process died, or failed otherwise than at an unreadable image."""


def build_loader(dataset: Any, batches: Batches, config: CfgNode,
                 num_workers: int | None = None, draw: Draw | None = None) -> 'Loader':
    """Return a Loader of `dataset` in the order of `batches` (common.data.sampler).

    num_workers: number of processes; None: DATA.NUM_WORKERS; 0: load in this process. draw: see
    Loader.
    """
    if num_workers is None:
        num_workers = choose_workers(config.DATA.NUM_WORKERS)
    use_shared_memory = config.DATA.USE_SHARED_MEMORY
    if num_workers and use_shared_memory:
        use_shared_memory = _has_shared_memory(
            batches.batch_size, num_workers, config.DATA.IMAGE_SIZE)
    return Loader(dataset, batches, num_workers, use_shared_memory, draw)


def choose_workers(wanted: int | str | None) -> int:
    """Return the number of loader processes of this process, for DATA.NUM_WORKERS.

    "auto", or None, leaves an accelerator's process one of the cores that it has to itself; on a
    CPU the model needs the cores.
    """
    if wanted not in ('auto', None):
        return int(wanted)
    if paddle.get_device() == 'cpu':
        return WORKERS_ON_CPU
    return max(1, min(MOST_WORKERS, count_cores() // count_sharing() - 1))


class Loader:
    """Iterate over (images uint8 [B, S, S, 3], labels int64 [B], indices int64 [B], ...) tensors.

    draw: a function that the workers call for each batch; its arrays follow the indices. Batches
    are numbered as training counts them.
    An unreadable image raises ImageError with its path, a worker that dies
    LoaderError with the path it was reading. `skipped` maps the paths that
    SKIP_CORRUPT replaced to how often. Each `iter()` starts the workers; `close()`
    ends them.
    """

    def __init__(self, dataset: Any, batches: Batches, num_workers: int,
                 use_shared_memory: bool, draw: Draw | None = None):
        self.batches = batches
        self.num_workers = num_workers
        self.skipped = {}
        self._reader = _SampleReader(dataset, num_workers, use_shared_memory, draw)
        self._iterator = None
        self._loader = None
        if num_workers:
            self._loader = paddle.io.DataLoader(
                self._reader, batch_sampler=_Numbered(batches), return_list=True,
                collate_fn=self._reader.collate,
                num_workers=num_workers, use_shared_memory=use_shared_memory,
                prefetch_factor=PREFETCH, worker_init_fn=self._reader.start_worker)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[paddle.Tensor, ...]]:
        if not self.num_workers:
            for keys in _Numbered(self.batches):
                arrays = self._unpack(self._reader.collate([self._reader[key] for key in keys]))
                if arrays is not None:
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
                tensors = self._unpack(batch)
                if tensors is not None:
                    yield tuple(tensors)
        finally:
            self.close()

    def close(self) -> None:
        """End the workers."""
        iterator, self._iterator = self._iterator, None
        atexit.unregister(self.close)
        if iterator is not None:
            self._reader.let_workers_end()
            iterator._try_shutdown_all(1)
            if self._reader.use_shared_memory:
                shared_files.remove_left_files()        # of a worker that was killed

    def describe_workers(self) -> str:
        """Return what each worker is reading at the moment, one line each."""
        return '\n'.join(
            f'loader worker {worker}: {self._reader.describe_progress(worker)}'
            for worker in range(self.num_workers))

    def describe_waiting(self, share: float) -> str:
        """Return one line for the log: how long the device waited for batches, and what helps."""
        text = f'The device waited for data {100 * share:.0f} % of the time'
        if share <= LONG_WAIT:
            return f'{text}.'
        cores = count_cores() // count_sharing()
        return (f'{text}: more loader processes (-num_workers, {self.num_workers} now, {cores} '
                f'core{"s" * (cores != 1)} a training process), smaller pictures in the files, or '
                'less TRAIN.AUTO_AUGMENT and RANDOM_ERASE would make it faster.')

    def _start_workers(self):
        self.close()
        self._reader.keep_workers()
        in_main_thread = threading.current_thread() is threading.main_thread()
        previous = signal.getsignal(signal.SIGCHLD)
        others = set(multiprocessing.active_children())
        try:
            self._iterator = iter(self._loader)
        except BaseException:               # a limit of the system, when some have started
            # Paddle would wait for them, without having told them to end.
            for worker in set(multiprocessing.active_children()) - others:
                worker.kill()
                worker.join()
            if self._reader.use_shared_memory:
                shared_files.remove_left_files()
            raise
        atexit.register(self.close)         # which keeps the loader alive while workers run
        if in_main_thread:
            # Paddle's handler raises wherever the program happens to be; `__iter__` does in one
            # place, and knows the sample's path.
            signal.signal(signal.SIGCHLD, previous or signal.SIG_DFL)

    def _unpack(self, batch):
        """Return the batch's tensors, or None where no image of it could be read."""
        *tensors, report = batch
        report = json.loads(report)
        for path in report['skipped']:
            self.skipped[path] = self.skipped.get(path, 0) + 1
        if report['error']:
            raise ImageError(f'{report["error"]}\nDelete the file, or go on without such images: '
                             '-opts DATA.SKIP_CORRUPT True. check_data.py lists them all.')
        if report['failure']:
            raise LoaderError(report['failure'])
        for place in report['without_rows']:
            tensors[3 + place] = tensors[3 + place][:0]
        return None if report['is_empty'] else tensors

    def _describe_death(self):
        workers = self._iterator._workers if self._iterator is not None else []
        lines = []
        for number, worker in enumerate(workers):
            if not worker.is_alive():
                code = worker.exitcode
                how = f'signal {-code}' if code is not None and code < 0 else f'exit code {code}'
                how += USUAL_CAUSES.get(code, '')
                lines.append(
                    f'Loader worker {number} died ({how}) while reading '
                    f'{self._reader.describe_progress(number)}.')
        return '\n'.join(lines) or 'The data loader ended unexpectedly.'


class _Numbered:
    """Yields the keys of batches, (number of the batch, epoch, index) each."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        for number, keys in enumerate(self.batches, getattr(self.batches, 'start', 0)):
            yield [(number, *key) for key in keys]

    def __len__(self):
        return len(self.batches)


class _SampleReader(paddle.io.Dataset):
    """What the workers run: reads samples, reports errors as values, notes its progress."""

    def __init__(self, dataset, num_workers, use_shared_memory, draw=None):
        super().__init__()
        self.dataset = dataset
        self.draw = draw
        self.number = 0                     # of the batch whose samples are being read
        self.use_shared_memory = use_shared_memory
        self.worker = 0
        self.mark = None                    # of this process, see shared_files
        self.parent = os.getpid()
        # Shared with the workers: [closing, then epoch and index for each worker].
        memory = mmap.mmap(-1, 8 * (1 + 2 * max(1, num_workers)))
        self.shared = np.frombuffer(memory, np.int64)
        self.shared[1:] = -1

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, numbered_key):
        self.number, *key = numbered_key
        key = tuple(key)
        self.shared[1 + 2 * self.worker:3 + 2 * self.worker] = key
        try:
            image, label, index = self.dataset[key]
        except ImageError as error:
            if self.dataset.leave_out_corrupt:
                return {'left_out': self.dataset.describe_sample(key[1])}
            return {'error': str(error)}
        except Exception:           # a mistake of ours: the traceback must reach the log
            return {'failure': f'{self.dataset.describe_sample(key[1])} (epoch {key[0]}): '
                               f'{traceback.format_exc()}'}
        skipped = []
        if index != key[1]:
            count = (index - key[1]) % len(self.dataset)
            skipped = [(key[1] + step) % len(self.dataset) for step in range(count)]
        return image, label, index, [self.dataset.describe_sample(i) for i in skipped]

    def collate(self, samples):
        """Return [images, labels, indices, *drawn, report], report being text.

        Paddle passes text through.
        """
        report = {'error': None, 'failure': None, 'skipped': [], 'is_empty': False,
                  'without_rows': []}
        for sample in samples:
            if isinstance(sample, dict):
                if 'left_out' not in sample:
                    return _blank({**report, **sample})
                report['skipped'].append(sample['left_out'])
            else:
                report['skipped'] += sample[3]
        samples = [sample for sample in samples if not isinstance(sample, dict)]
        if not samples:
            return _blank({**report, 'is_empty': True})
        images, labels, indices, _ = zip(*samples)
        images, indices = np.stack(images), np.array(indices, np.int64)
        drawn = self.draw(self.number, images.shape, indices) if self.draw else []
        # Paddle cannot pass on an array without numbers.
        report['without_rows'] = [place for place, array in enumerate(drawn) if not len(array)]
        drawn = [array if len(array) else np.zeros([1, *array.shape[1:]], array.dtype)
                 for array in drawn]
        return [images, np.array(labels, np.int64), indices, *drawn, json.dumps(report)]

    def start_worker(self, worker):
        """Prepare a worker process: signals meant for the training process do not end it."""
        self.worker = worker
        self.mark = shared_files.mark_worker() if self.use_shared_memory else None
        # Python would print the error, forget the batch, and let it be waited for for ever.
        multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_end_unsent)
        # Runs when Paddle lets the worker end by itself.
        multiprocessing.util.Finalize(None, self._leave_nothing, exitpriority=0)
        keep_freed_memory()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._end_if_over)
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

    def _end_if_over(self, signum, frame):
        is_orphan = os.getppid() != self.parent
        if self.shared[0] or is_orphan:
            self._leave_nothing()
            os._exit(int(is_orphan))

    def _end_with_parent(self):
        while os.getppid() == self.parent:
            time.sleep(1)
        # In the main thread, which makes the files: none comes after they were removed.
        signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)
        time.sleep(ORPHAN_SECONDS)
        os._exit(1)

    def _leave_nothing(self):
        if self.use_shared_memory:
            shared_files.remove_own_files(self.mark)


def _end_unsent(error, batch):
    """End this worker, whose batch cannot be put into the queue; its files are left to others."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    logger.warning('A loader worker cannot hand over a batch: %s', reason)
    os._exit(UNSENT)


def _blank(report):
    nothing = np.zeros(1, np.int64)
    return [nothing.astype(np.uint8), nothing, nothing, json.dumps(report)]


def _has_shared_memory(batch_size, num_workers, image_size):
    """Tell whether /dev/shm has room for the batches under way; say so when it has not.

    What killed runs of this user have left there is removed first. All processes of this
    machine load at the same time; those of other machines are counted, too.
    """
    folder = shared_files.FOLDER
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        return False
    removed = shared_files.remove_left_files()
    if removed:
        logger.info('Loader: removed %.1f MB that a killed run had left in %s.', removed / 1e6,
                    folder)
    stats = os.statvfs(folder)
    free = stats.f_bavail * stats.f_frsize
    batch_bytes = batch_size * image_size ** 2 * 3
    needed = batch_bytes * (PREFETCH * num_workers + 2) * get_world_size()
    if free >= needed:
        return True
    logger.warning(
        'Loader: %s has %d MB free and %d MB are needed; batches go through pipes instead, which '
        'is slower.', folder, free >> 20, needed >> 20)
    return False
