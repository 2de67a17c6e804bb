"""CIFAR from archives in the official binary form, which the test writes, and from damaged ones."""

import contextlib
import functools
import hashlib
import http.server
import os
import pickle
import threading

import numpy as np
import paddle
import pytest

from common.data.cifar import LAYOUTS, download_cifar, load_cifar
from common.data.datasets import build_dataset
from common.data.transforms import build_eval_transform
from common.errors import UserError
from tests.support.cifar_files import dump_python2, make_contents, write_archive
from tests.support.data_folders import make_config


def write_folder(name, path, files):
    folder = os.path.join(path, LAYOUTS[name].folder)
    os.makedirs(folder)
    for file, content in files.items():
        with open(os.path.join(folder, file), 'wb') as target:
            target.write(content)
    return folder


def check(loaded, parts):
    images, labels, _ = loaded
    pixels = np.concatenate([part[0] for part in parts])
    assert images.shape == (len(pixels), 32, 32, 3) and images.dtype == np.uint8
    for n, y, x, channel in [(0, 0, 0, 0), (3, 31, 5, 2), (5, 7, 30, 1)]:
        assert images[n, y, x, channel] == pixels[n, channel * 1024 + y * 32 + x]
    assert labels.dtype == np.int64 and labels.tolist() == sum((part[1] for part in parts), [])


@pytest.mark.parametrize('name', LAYOUTS)
@pytest.mark.parametrize('dump', [dump_python2, functools.partial(pickle.dumps, protocol=2),
                                  functools.partial(pickle.dumps, protocol=4)])
def test_archive_and_folder(name, dump, tmp_path):
    files, arrays = make_contents(name, dump=dump)
    layout = LAYOUTS[name]
    official = {'cifar10': 'cifar-10-python.tar.gz', 'cifar100': 'cifar-100-python.tar.gz'}[name]
    (tmp_path / 'a').mkdir()
    archive = write_archive(name, tmp_path / 'a' / official, files)
    folder = write_folder(name, tmp_path / 'b', files)
    for path in (archive, os.path.dirname(archive), folder, os.path.dirname(folder)):
        check(load_cifar(name, path, True), [arrays[file] for file in layout.train_files])
        check(load_cifar(name, path, False), [arrays[file] for file in layout.val_files])
        names = load_cifar(name, path, False)[2]
        assert names == [f'class {i}' for i in range(layout.num_classes)]


def test_same_images_as_paddles_own_class(tmp_path):
    archive = write_archive('cifar10', tmp_path / 'c.tar.gz', make_contents('cifar10')[0])
    images, labels, _ = load_cifar('cifar10', archive, False)
    theirs = paddle.vision.datasets.Cifar10(archive, mode='test', backend='cv2')
    for index in range(len(theirs)):
        image, label = theirs[index]
        assert np.array_equal(image, images[index]) and int(label) == labels[index]


def test_dataset(tmp_path):
    archive = write_archive('cifar10', tmp_path / 'c.tar.gz', make_contents('cifar10')[0])
    config = make_config(
        DATA__DATASET='cifar10', DATA__DATA_PATH=archive, DATA__CROP_PCT=1.0, MODEL__NUM_CLASSES=10)
    val = build_dataset(config, False, build_eval_transform(config))
    array, label, index = val[0, 2]
    assert np.array_equal(array, val.images[2]) and (label, index) == (val.labels[2], 2)
    assert val.describe() == 'cifar10: 6 validation images, 10 classes'
    assert len(build_dataset(config, True, None)) == 30


class Payload:
    def __reduce__(self):
        return os.mkdir, ('hacked',)


def spoil(files, file, **changes):
    tree = pickle.loads(files[file], encoding='bytes')
    tree.update({key.encode(): value for key, value in changes.items()})
    return {**files, file: pickle.dumps(tree, protocol=2)}


@pytest.mark.parametrize('change, message', [
    ({'data': np.zeros((6, 3000), np.uint8)}, 'expected "data"'),
    ({'data': np.zeros((6, 3072), np.float32)}, 'expected "data"'),
    ({'data': None}, 'expected "data"'),
    ({'labels': [0] * 5}, 'expected "labels", 6 integers below 10'),
    ({'labels': [0] * 5 + [10]}, 'expected "labels"'),
    ({'labels': [0] * 5 + [-1]}, 'expected "labels"'),
    ({'labels': [0] * 5 + ['1']}, 'expected "labels"'),
    ({'extra': Payload()}, 'nothing was run'),
])
def test_wrong_contents_are_refused(change, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = spoil(make_contents('cifar10')[0], 'test_batch', **change)
    archive = write_archive('cifar10', tmp_path / 'c.tar.gz', files)
    with pytest.raises(UserError, match=f'test_batch: .*{message}'):
        load_cifar('cifar10', archive, False)
    assert not os.path.exists('hacked')


def test_damaged_archives_are_refused(tmp_path):
    files, _ = make_contents('cifar10')
    path = write_archive('cifar10', tmp_path / 'c.tar.gz', files)
    with open(path, 'rb') as file:
        whole = file.read()
    cases = {'cut': whole[:len(whole) // 2], 'empty': b'', 'text': b'not an archive' * 100}
    middle = bytearray(whole)
    middle[len(whole) // 2] ^= 0xff
    cases['flipped'] = bytes(middle)
    for name, content in cases.items():
        damaged = tmp_path / f'{name}.tar.gz'
        damaged.write_bytes(content)
        with pytest.raises(UserError, match=name):
            load_cifar('cifar10', str(damaged), True)
    del files['data_batch_3']
    with pytest.raises(UserError, match='does not hold cifar-10-batches-py/data_batch_3'):
        load_cifar('cifar10', write_archive('cifar10', tmp_path / 'd.tar.gz', files), True)


def test_wrong_paths(tmp_path):
    with pytest.raises(UserError, match='No such file or folder'):
        load_cifar('cifar10', str(tmp_path / 'none'), True)
    with pytest.raises(UserError, match='holds neither cifar-10-python.tar.gz nor'):
        load_cifar('cifar10', str(tmp_path), True)
    files, _ = make_contents('cifar10')
    folder = write_folder('cifar10', tmp_path, files)
    os.remove(os.path.join(folder, 'data_batch_2'))
    with pytest.raises(UserError, match='Cannot read .*data_batch_2'):
        load_cifar('cifar10', folder, True)
    archive100 = write_archive('cifar100', tmp_path / 'x.tar.gz', make_contents('cifar100')[0])
    with pytest.raises(UserError, match='does not hold cifar-10-batches-py'):
        load_cifar('cifar10', archive100, True)


# Downloads

@contextlib.contextmanager
def serve(folder):
    class Handler(http.server.SimpleHTTPRequestHandler):
        requests = []

        def log_message(self, *arguments):
            self.requests.append(self.path)

    server = http.server.ThreadingHTTPServer(
        ('127.0.0.1', 0), functools.partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f'http://127.0.0.1:{server.server_port}', Handler.requests
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    from paddle.dataset import common

    monkeypatch.setattr(common, 'DATA_HOME', str(tmp_path / 'cache'))
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    monkeypatch.setattr('common.machine.download.PAUSE', 0.001)
    return tmp_path / 'cache' / 'cifar'


@pytest.mark.parametrize('name', LAYOUTS)
def test_download(name, tmp_path, cache, monkeypatch):
    from paddle.vision.datasets import cifar as official

    files, arrays = make_contents(name)
    (tmp_path / 'served').mkdir()
    path = write_archive(name, tmp_path / 'served' / f'{name}.tar.gz', files)
    with open(path, 'rb') as file:
        md5 = hashlib.md5(file.read()).hexdigest()
    with serve(tmp_path / 'served') as (url, requests):
        monkeypatch.setattr(official, f'{name.upper()}_URL', f'{url}/{name}.tar.gz')
        monkeypatch.setattr(official, f'{name.upper()}_MD5', md5)
        for _ in range(2):
            check(load_cifar(name, '', False), [arrays[f] for f in LAYOUTS[name].val_files])
        assert requests == [f'/{name}.tar.gz']                 # the second time from the cache
        monkeypatch.setattr(official, f'{name.upper()}_MD5', '0' * 32)
        with pytest.raises(UserError, match='download is damaged'):
            load_cifar(name, '', False)
        monkeypatch.setattr(official, f'{name.upper()}_URL', f'{url}/none.tar.gz')
        with pytest.raises(UserError, match=r'Cannot download .*none\.tar\.gz: [^$]*-data_path='):
            load_cifar(name, '', False)
    with pytest.raises(UserError, match='Cannot download'):     # nobody answers any more
        download_cifar(name)
    assert all(file.endswith('.lock') for file in os.listdir(cache))


def test_a_download_goes_on_where_it_was_broken_off(tmp_path, cache, monkeypatch):
    from paddle.vision.datasets import cifar as official

    content = b'0123456789' * 1000
    served = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            first = int(self.headers.get('Range', 'bytes=0-')[6:-1])
            served.append(first)
            self.send_response(206 if first else 200)
            self.send_header('ETag', '"1"')
            self.send_header('Content-Length', str(len(content) - first))
            self.send_header('Content-Range', f'bytes {first}-{len(content) - 1}/{len(content)}')
            self.end_headers()
            self.wfile.write(content[first:first + (4000 if not first else len(content))])

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        monkeypatch.setattr(official, 'CIFAR10_URL',
                            f'http://127.0.0.1:{server.server_port}/c.tar.gz')
        monkeypatch.setattr(official, 'CIFAR10_MD5', hashlib.md5(content).hexdigest())
        with open(download_cifar('cifar10'), 'rb') as file:
            assert file.read() == content
    finally:
        server.shutdown()
        server.server_close()
    assert served == [0, 4000]
