"""The loader: the same data for any number of workers, and what happens when one fails."""

import gc
import glob
import itertools
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import weakref

import numpy as np
import paddle
import pytest

from common.data import loader as loader_module
from common.data import shared_files
from common.data.datasets import build_dataset
from common.data.images import ImageError
from common.data.loader import LoaderError, build_loader, choose_workers
from common.data.pipeline import get_dataloader, get_dataset
from common.data.sampler import EvalBatches, TrainBatches
from common.data.transforms import build_train_transform
from tests.support.data_folders import make_config, make_folders, make_image
from tests.support.paths import ROOT


def collect(batches):
    return [[tensor.numpy() for tensor in batch] for batch in batches]


def build_train(path, **options):
    config = make_config(DATA__DATA_PATH=str(path), **options)
    return build_dataset(config, True, build_train_transform(config)), config


@pytest.fixture(scope='module')
def digits():
    config = make_config(DATA__DATASET='digits', TRAIN__AFFINE_DEGREES=10.0)
    return build_dataset(config, True, build_train_transform(config)), config


def test_batches_hold_the_samples_of_the_sampler(digits):
    dataset, config = digits
    batches = TrainBatches(len(dataset), 16, seed=0).slice(80, 90)     # 84 an epoch
    keys = list(batches)
    loaded = list(build_loader(dataset, batches, config, num_workers=2))
    assert len(loaded) == len(keys) == 10 and keys[3][0][0] == 0 and keys[4][0][0] == 1
    for batch, batch_keys in zip(loaded, keys):
        assert [tensor.dtype for tensor in batch] == [paddle.uint8, paddle.int64, paddle.int64]
        images, labels, indices = (tensor.numpy() for tensor in batch)
        samples = [dataset[key] for key in batch_keys]
        assert np.array_equal(images, np.stack([sample[0] for sample in samples]))
        assert labels.tolist() == [sample[1] for sample in samples]
        assert indices.tolist() == [index for _, index in batch_keys]


@pytest.mark.parametrize('use_shared_memory', [True, False])
@pytest.mark.parametrize('num_workers', [1, 4])
def test_workers_change_nothing(digits, num_workers, use_shared_memory):
    dataset, _ = digits
    config = make_config(DATA__DATASET='digits', DATA__USE_SHARED_MEMORY=use_shared_memory)
    batches = TrainBatches(len(dataset), 16, seed=0).slice(80, 92)
    expected = collect(build_loader(dataset, batches, config, num_workers=0))
    loaded = collect(build_loader(dataset, batches, config, num_workers=num_workers))
    assert len(loaded) == len(expected) == 12
    for batch, other in zip(loaded, expected):
        assert all(np.array_equal(a, b) for a, b in zip(batch, other))


@pytest.mark.parametrize('num_workers', [0, 2])
def test_evaluation_loads_every_sample_each_time(digits, num_workers):
    dataset, config = digits
    loader = build_loader(dataset, EvalBatches(37, 8), config, num_workers)
    assert len(loader) == 5
    for _ in range(2):
        batches = collect(loader)
        assert [len(batch[1]) for batch in batches] == [8, 8, 8, 8, 5]
        assert np.concatenate([batch[2] for batch in batches]).tolist() == list(range(37))


def test_no_batches_at_all(digits):
    dataset, config = digits
    assert list(build_loader(dataset, EvalBatches(1, 8, 1, 2), config, num_workers=2)) == []


def test_an_endless_loader_ends_its_workers_when_left(digits):
    dataset, config = digits
    loader = build_loader(dataset, TrainBatches(len(dataset), 16, seed=0), config, num_workers=2)
    batches = iter(loader)
    for _ in range(200):        # more than two epochs
        next(batches)
    workers = list(loader._iterator._workers)
    assert all(worker.is_alive() for worker in workers)
    handler = signal.getsignal(signal.SIGCHLD)      # Paddle's would raise anywhere in the program
    assert not getattr(handler, '__module__', '').startswith('paddle')
    start = time.monotonic()
    batches.close()
    assert not any(worker.is_alive() for worker in workers)
    assert time.monotonic() - start < 120


def test_starting_is_quick(digits):
    dataset, config = digits
    loader = build_loader(dataset, TrainBatches(len(dataset), 16, seed=0), config, num_workers=2)
    start = time.monotonic()
    next(iter(loader))
    assert time.monotonic() - start < 60


@pytest.mark.parametrize('num_workers', [0, 2])
def test_corrupt_image_stops_with_its_path(tmp_path, num_workers):
    dataset, config = build_train(make_folders(tmp_path))
    os.truncate(tmp_path / 'train' / 'dog' / '2.jpg', 200)
    loader = build_loader(dataset, TrainBatches(12, 4, seed=0), config, num_workers)
    start = time.monotonic()
    with pytest.raises(ImageError, match=r'train/dog/2\.jpg: damaged image') as caught:
        for _ in zip(range(4), loader):
            pass
    assert 'DATA.SKIP_CORRUPT True' in str(caught.value) and 'check_data.py' in str(caught.value)
    assert time.monotonic() - start < 120


@pytest.mark.parametrize('num_workers', [0, 2])
def test_corrupt_images_are_skipped_and_counted(tmp_path, num_workers):
    dataset, config = build_train(make_folders(tmp_path), DATA__SKIP_CORRUPT=True)
    for number in (1, 2):
        os.truncate(tmp_path / 'train' / 'dog' / f'{number}.jpg', 200)
    loader = build_loader(dataset, TrainBatches(12, 4, seed=0).slice(0, 6), config, num_workers)
    batches = collect(loader)
    indices = np.concatenate([batch[2] for batch in batches])
    assert len(indices) == 24 and not {5, 6} & set(indices.tolist())
    assert np.bincount(indices)[7] == 6         # its own two and those of 5 and 6
    # Sample 5 is replaced after looking at 5 and 6, sample 6 after looking at 6.
    assert loader.skipped == {
        str(tmp_path / 'train' / 'dog' / '1.jpg'): 2, str(tmp_path / 'train' / 'dog' / '2.jpg'): 4}


@pytest.mark.parametrize('num_workers', [0, 2])
def test_corrupt_validation_images_are_left_out_and_counted(tmp_path, num_workers):
    config = make_config(DATA__DATA_PATH=make_folders(tmp_path), DATA__SKIP_CORRUPT=True)
    dataset = build_dataset(config, False, build_train_transform(config))
    expected = set(range(len(dataset)))
    damaged = sorted((tmp_path / 'val').rglob('*.jpg'))[:3]     # the first batch, and one more
    for path in damaged:
        os.truncate(path, 200)
    loader = build_loader(dataset, EvalBatches(len(dataset), 2), config, num_workers)
    batches = collect(loader)
    indices = np.concatenate([batch[2] for batch in batches]).tolist()
    assert sorted(indices) == sorted(expected - {0, 1, 2})
    assert [len(batch[2]) for batch in batches][0] == 1         # the first has none left
    assert loader.skipped == {str(path): 1 for path in damaged}
    config = make_config(DATA__DATA_PATH=str(tmp_path))
    loader = build_loader(build_dataset(config, False, build_train_transform(config)),
                          EvalBatches(len(dataset), 2), config, num_workers)
    with pytest.raises(ImageError, match='SKIP_CORRUPT'):
        list(loader)


def test_vanished_folder_is_an_error_not_a_hang(tmp_path):
    dataset, config = build_train(make_folders(tmp_path))
    os.rename(tmp_path / 'train', tmp_path / 'gone')
    with pytest.raises(ImageError, match='no such image file'):
        next(iter(build_loader(dataset, TrainBatches(12, 4, seed=0), config, num_workers=2)))


class Deadly:
    """A transform that ends its process, or fails, at one colour."""

    def __init__(self, act):
        self.act = act

    def __call__(self, image, rng):
        if image.size == (41, 30):
            self.act()
        return image.resize((32, 32))


def kill_self():
    os.kill(os.getpid(), signal.SIGKILL)


def fail():
    raise ZeroDivisionError('of our own making')


@pytest.mark.parametrize('num_workers', [1, 2])
def test_dead_worker_is_reported_with_its_sample(tmp_path, monkeypatch, num_workers):
    monkeypatch.setattr(shared_files, 'FOLDER', str(tmp_path / 'shared'))
    (tmp_path / 'shared').mkdir()
    dataset, config = build_train(make_folders(tmp_path))
    make_image(str(tmp_path / 'train' / 'dog' / '3.jpg'), size=(41, 30))
    dataset.transform = Deadly(kill_self)
    loader = build_loader(dataset, TrainBatches(12, 4, seed=0), config, num_workers)
    start = time.monotonic()
    with pytest.raises(LoaderError, match=r'worker \d died \(signal 9.*train/dog/3\.jpg'):
        for _ in loader:
            pass
    assert time.monotonic() - start < 120
    assert os.listdir(tmp_path / 'shared') == []            # nor its mark


@pytest.mark.skipif(not hasattr(signal, 'alarm'), reason='needs alarms')
def test_a_start_that_fails_halfway_ends_the_workers_that_have_started(digits, monkeypatch,
                                                                       tmp_path):
    """As where no further thread can be started; Paddle would wait for the workers for ever."""
    def fail(*_):
        raise RuntimeError("can't start new thread")

    def start_or_fail(thread):
        """Fail once, where the first queue of indices wants its thread."""
        if thread.name == 'QueueFeederThread' and os.getpid() == training and not failed:
            failed.append(thread)
            fail()
        start(thread)

    start, training, failed = threading.Thread.start, os.getpid(), []
    monkeypatch.setattr(shared_files, 'FOLDER', str(tmp_path))
    monkeypatch.setattr(threading.Thread, 'start', start_or_fail)
    previous = signal.signal(signal.SIGALRM, fail)
    others, started = set(multiprocessing.active_children()), time.monotonic()
    signal.alarm(120)
    try:
        with pytest.raises(RuntimeError, match='new thread'):
            list(build_loader(digits[0], EvalBatches(20, 8), digits[1], num_workers=2))
        gc.collect()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    left = set(multiprocessing.active_children()) - others
    for worker in left:
        worker.kill()
    assert failed and not left and os.listdir(tmp_path) == []
    assert time.monotonic() - started < 110


def allow_no_more_files():
    resource = pytest.importorskip('resource')
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


@pytest.mark.skipif(not os.path.isdir('/dev/shm'), reason='no /dev/shm')
def test_a_batch_that_cannot_be_handed_over_is_not_waited_for(tmp_path):
    """It is a file in shared memory, and comes from a thread, whose errors are only printed."""
    dataset, config = build_train(make_folders(tmp_path))
    make_image(str(tmp_path / 'train' / 'dog' / '3.jpg'), size=(41, 30))
    dataset.transform = Deadly(allow_no_more_files)
    loader = build_loader(dataset, TrainBatches(12, 4, seed=0), config, 1)
    assert loader._reader.use_shared_memory
    start = time.monotonic()
    with pytest.raises(LoaderError, match='exit code 3, its batch could not be handed over.*uli'):
        for _ in loader:
            pass
    assert time.monotonic() - start < 120


@pytest.mark.parametrize('num_workers', [0, 1])
def test_own_mistake_in_a_worker_keeps_its_traceback(tmp_path, num_workers):
    dataset, config = build_train(make_folders(tmp_path))
    make_image(str(tmp_path / 'train' / 'dog' / '3.jpg'), size=(41, 30))
    dataset.transform = Deadly(fail)
    loader = build_loader(dataset, TrainBatches(12, 4, seed=0), config, num_workers)
    with pytest.raises(LoaderError, match=r'(?s)dog/3\.jpg.*in fail.*of our own making'):
        list(zip(range(3), loader))


def test_signals_for_the_training_process_do_not_end_workers(digits):
    dataset, config = digits
    loader = build_loader(dataset, TrainBatches(len(dataset), 16, seed=0), config, num_workers=2)
    batches = iter(loader)
    next(batches)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        for worker in loader._iterator._workers:
            os.kill(worker.pid, number)
    for _ in range(20):
        next(batches)
    assert 'digits training image' in loader.describe_workers()
    batches.close()


def test_little_shared_memory_falls_back_to_pipes(digits, monkeypatch, caplog):
    dataset, config = digits
    full = os.statvfs_result((4096, 4096, 100, 3, 3, 0, 0, 0, 0, 255))
    monkeypatch.setattr(loader_module.os, 'statvfs', lambda path: full)
    batches = TrainBatches(len(dataset), 64, seed=0).slice(0, 3)
    with caplog.at_level(logging.WARNING):
        loader = build_loader(dataset, batches, config, num_workers=1)
    assert '/dev/shm has 0 MB free' in caplog.text and not loader._loader.use_shared_memory
    assert len(list(loader)) == 3


def test_loaders_are_let_go(digits):
    """One is made for every validation."""
    dataset, config = digits
    loaders = []
    for _ in range(3):
        loader = build_loader(dataset, EvalBatches(20, 8), config, num_workers=1)
        list(loader)
        loaders.append(weakref.ref(loader))
    left = build_loader(dataset, EvalBatches(99, 8), config, num_workers=1)
    next(batches := iter(left))                     # not read to its end
    loaders.append(weakref.ref(left))
    del loader, left, batches
    gc.collect()
    assert [loader() for loader in loaders] == [None] * 4


@pytest.mark.runs
def test_too_many_open_files_are_one_line(tmp_path):
    resource = pytest.importorskip('resource')
    done = subprocess.run(
        [sys.executable, 'main_single_gpu.py', '-cfg=configs/vit_digits.yaml', '-num_workers=2',
         f'-output={tmp_path}'], cwd=os.path.join(ROOT, 'ViT'), capture_output=True, text=True,
        timeout=300, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (12, 12)))
    assert done.returncode == 1 and 'Traceback' not in done.stderr, done.stderr
    assert 'error: Too many open files. Raise the limit (ulimit -n 1024)' in done.stderr


@pytest.mark.skipif(not hasattr(os, 'O_TMPFILE'), reason='not Linux')
def test_the_mark_of_a_worker_is_locked_before_it_has_a_name(tmp_path, monkeypatch):
    """A worker that is killed in between would leave a mark that nobody dares to remove."""
    fcntl, link = pytest.importorskip('fcntl'), os.link

    def look_and_link(source, target, **options):
        assert os.listdir(tmp_path) == []
        with open(source, 'rb') as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        link(source, target, **options)

    monkeypatch.setattr(shared_files, 'FOLDER', str(tmp_path))
    monkeypatch.setattr(shared_files.os, 'link', look_and_link)
    mark = shared_files.mark_worker()
    assert os.listdir(tmp_path) == [os.path.basename(mark)]
    shared_files.remove_own_files(mark)
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
def test_a_worker_without_a_training_process_leaves_nothing_however_busy(tmp_path, monkeypatch):
    """What it makes while it finds out must go, too."""
    monkeypatch.setattr(shared_files, 'FOLDER', str(tmp_path))
    reader = loader_module._SampleReader([], 1, True)
    worker = os.fork()
    if worker == 0:
        try:
            reader.parent = -1
            reader.start_worker(0)
            for number in itertools.count():
                (tmp_path / f'paddle_{os.getpid()}_{number}').touch()
        finally:
            os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) == 1
    assert os.listdir(tmp_path) == []


def list_shared(pids):
    return [path for pid in pids for path in glob.glob(f'/dev/shm/*_{pid}_*')
            + glob.glob(f'/dev/shm/*vit-loader-{pid}-*')]


@pytest.mark.runs
@pytest.mark.skipif(not os.path.isdir('/dev/shm'), reason='no /dev/shm')
@pytest.mark.parametrize('killed', ['process', 'all'])
def test_what_killed_processes_leave_in_shared_memory_is_removed(digits, killed):
    """By the workers, or, where they were killed too, by the next loader of the same user."""
    script = (
        'import time\n'
        'from common.data.pipeline import get_dataset, get_dataloader\n'
        'from tests.support.data_folders import make_config\n'
        'config = make_config(DATA__DATASET="digits", DATA__BATCH_SIZE=16, DATA__NUM_WORKERS=2)\n'
        'loader = get_dataloader(config, get_dataset(config))\n'
        'batches = iter(loader)\n'
        'next(batches)\n'
        'print(*[worker.pid for worker in loader._iterator._workers], flush=True)\n'
        'time.sleep(60)\n')
    with subprocess.Popen([sys.executable, '-c', script], cwd=ROOT, stdout=subprocess.PIPE,
                          text=True) as process:
        pids = [int(pid) for pid in process.stdout.readline().split()]
        wait_until(lambda: len(list_shared(pids)) > 4)
        dataset, config = digits
        list(build_loader(dataset, EvalBatches(9, 8), config, num_workers=1))
        assert len(list_shared(pids)) > 4           # a living process keeps its own
        for pid in [process.pid, *(pids if killed == 'all' else [])]:
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not any(is_running(pid) for pid in pids))

    def is_clean():         # threads of a dead process may hold its lock for a moment
        if killed == 'all':
            build_loader(dataset, EvalBatches(9, 8), config, num_workers=1)
        return not list_shared(pids)
    wait_until(is_clean)


@pytest.mark.parametrize('kept', [
    'nothing', 'a living process', 'a lock', 'another user', 'an older file', 'a link'])
def test_what_may_be_removed_from_shared_memory(tmp_path, monkeypatch, kept):
    """Files by the process id of a dead worker of this user, that are not older than its mark."""
    fcntl = pytest.importorskip('fcntl')
    monkeypatch.setattr(shared_files, 'FOLDER', str(tmp_path))
    dead = os.getpid() if kept == 'a living process' else 2 ** 22 + 1
    file, mark = tmp_path / f'paddle_{dead}_1_2', tmp_path / f'vit-loader-{dead}-ab'
    for path in (mark, file, tmp_path / 'paddle_77777777_1', tmp_path / 'vit-loader-x'):
        path.write_bytes(bytes(100))
    if kept == 'another user':
        monkeypatch.setattr(shared_files.os, 'getuid', lambda: 4321)
    if kept == 'an older file':
        os.utime(file, (1, 1))
    if kept == 'a link':
        mark.rename(tmp_path / 'elsewhere')
        mark.symlink_to('elsewhere')
    with open(mark, 'rb') as held:
        if kept == 'a lock':                # of a worker in another container, whose ids differ
            fcntl.flock(held, fcntl.LOCK_EX)
        assert shared_files.remove_left_files() == (100 if kept == 'nothing' else 0)
    assert file.exists() == (kept != 'nothing')
    assert mark.exists() == (kept not in ('nothing', 'an older file'))
    assert (tmp_path / 'paddle_77777777_1').exists() and (tmp_path / 'vit-loader-x').exists()


@pytest.mark.parametrize('cores, processes, expected', [
    (8, 1, 7), (64, 1, 16), (64, 8, 7), (2, 1, 1), (1, 1, 1), (8, 8, 1)])
def test_workers_by_themselves(cores, processes, expected, monkeypatch):
    monkeypatch.setattr(loader_module, 'count_cores', lambda: cores)
    monkeypatch.setattr(loader_module, 'count_sharing', lambda: processes)
    assert choose_workers('auto') == 2          # on a CPU
    monkeypatch.setattr(paddle, 'get_device', lambda: 'gpu:0')
    assert choose_workers('auto') == expected
    assert choose_workers(3) == 3 and choose_workers(0) == 0


def wait_until(condition):
    end = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_paddlevits_functions_give_one_epoch():
    config = make_config(DATA__DATASET='digits', DATA__BATCH_SIZE=64, DATA__NUM_WORKERS=1)
    train = get_dataset(config)
    loader = get_dataloader(config, train)
    first = np.concatenate([batch[2].numpy() for batch in loader])
    second = np.concatenate([batch[2].numpy() for batch in get_dataloader(config, train, epoch=1)])
    assert len(loader) == 21 and len(set(first.tolist())) == len(second) == 21 * 64
    assert not np.array_equal(first, second)
    val = get_dataset(config, is_train=False)
    seen = np.concatenate(
        [batch[2].numpy() for batch in get_dataloader(config, val, is_train=False)])
    assert sorted(seen.tolist()) == list(range(len(val)))


@pytest.mark.parametrize('ending', ['sys.exit(3)', 'raise KeyboardInterrupt', 'os._exit(4)'])
@pytest.mark.runs
def test_a_process_that_ends_leaves_no_worker(ending):
    """Workers ignore SIGTERM while training goes on, but must not outlive it."""
    script = (
        'import os, sys\n'
        'from common.data.pipeline import get_dataset, get_dataloader\n'
        'from tests.support.data_folders import make_config\n'
        'config = make_config(DATA__DATASET="digits", DATA__BATCH_SIZE=16, DATA__NUM_WORKERS=2)\n'
        'loader = get_dataloader(config, get_dataset(config))\n'
        'batches = iter(loader)\n'
        'next(batches)\n'
        'print(*[worker.pid for worker in loader._iterator._workers], flush=True)\n'
        f'{ending}\n')
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, '-c', script], cwd=ROOT, capture_output=True, text=True, timeout=300)
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2, done.stderr
    assert done.returncode in (3, 4, 1, 130, -2)
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() - start < 120, 'workers outlive the process'
        time.sleep(0.1)


def is_running(pid):
    try:
        with open(f'/proc/{pid}/stat', encoding='ascii') as file:
            return file.read().rsplit(')', 1)[1].split()[0] != 'Z'
    except FileNotFoundError:
        return False


@pytest.mark.parametrize('use_shared_memory', [True, False])
@pytest.mark.parametrize('num_workers', [0, 2])
def test_what_is_drawn_for_a_batch_comes_with_it(digits, num_workers, use_shared_memory):
    """By the batch's number in the run, whoever loads it; arrays without numbers, too."""
    dataset, config = digits
    config = make_config(DATA__DATASET='digits', DATA__USE_SHARED_MEMORY=use_shared_memory)

    def draw(number, shape, indices):
        return [np.full(number % 3, number, np.float32), indices * 2, np.array([shape])]

    batches = TrainBatches(len(dataset), 16, seed=0).slice(82, 88)     # 84 an epoch
    loaded = list(build_loader(dataset, batches, config, num_workers, draw))
    assert len(loaded) == 6
    for number, (images, _, indices, *drawn) in enumerate(loaded, 82):
        numbers, doubled, shape = (tensor.numpy() for tensor in drawn)
        assert numbers.tolist() == [number] * (number % 3)
        assert (doubled == 2 * indices.numpy()).all()
        assert shape.tolist() == [images.shape]
