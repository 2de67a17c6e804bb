"""MNIST and Fashion-MNIST from IDX files that the test writes, and from damaged ones."""

import contextlib
import functools
import gzip
import hashlib
import http.server
import struct
import threading

import numpy as np
import pytest
from paddle.dataset import common as paddle_cache
from paddle.vision.datasets import FashionMNIST

from common.data.datasets import build_dataset
from common.data.idx import FILES, read_idx
from common.data.transforms import build_eval_transform
from common.errors import UserError
from common.run.launch import run_single
from tests.support.data_folders import make_config
from tests.support.paths import ROOT
from ViT.project import PROJECT


def encode(array):
    return struct.pack(f'>I{array.ndim}I', 0x800 + array.ndim, *array.shape) + array.tobytes()


def write(folder, is_gz=False, counts=(30, 10)):
    """Write all four files. Returns {is_train: (images, labels)}."""
    arrays = {}
    folder.mkdir(exist_ok=True)
    for is_train, count in zip((True, False), counts):
        rng = np.random.default_rng(count)
        arrays[is_train] = (rng.integers(0, 256, (count, 28, 28), dtype=np.uint8),
                            rng.integers(0, 10, count, dtype=np.uint8))
        for name, array in zip(FILES[is_train], arrays[is_train]):
            data = encode(array)
            (folder / (name + '.gz' * is_gz)).write_bytes(gzip.compress(data) if is_gz else data)
    return arrays


def build(path, is_train=True, name='fashion_mnist', **options):
    config = make_config(**{'DATA__DATASET': name, 'DATA__DATA_PATH': str(path),
                            'DATA__IMAGE_SIZE': 28, 'DATA__CROP_PCT': 1.0, **options})
    return build_dataset(config, is_train, build_eval_transform(config))


@pytest.mark.parametrize('is_gz', [False, True])
@pytest.mark.parametrize('name, first', [('mnist', '0'), ('fashion_mnist', 'T-shirt/top')])
def test_both_parts(tmp_path, is_gz, name, first):
    arrays = write(tmp_path, is_gz)
    for is_train, (images, labels) in arrays.items():
        dataset = build(tmp_path, is_train, name)
        assert np.array_equal(dataset.labels, labels) and len(dataset.class_names) == 10
        assert dataset.class_names[0] == first
        array, label, index = dataset[0, 7]
        assert (label, index) == (labels[7], 7)
        assert np.array_equal(array, np.repeat(images[7][..., None], 3, -1))


def test_names_with_a_dot(tmp_path):
    arrays = write(tmp_path)
    for name in FILES[True]:
        (tmp_path / name).rename(tmp_path / name.replace('-idx', '.idx'))
    assert np.array_equal(build(tmp_path).labels, arrays[True][1])


@pytest.mark.parametrize('which, content, message', [
    (0, b'', 'not an IDX file'), (0, b'\0\0\x08\x01' + bytes(12), 'with 3 axes'),
    (0, struct.pack('>4I', 0x803, 30, 28, 28) + bytes(99), '23,520 bytes.*found 99'),
    (0, encode(np.zeros((30, 28, 28), np.uint8)) + b'x', 'found more'),
    (0, encode(np.zeros((30, 8, 8), np.uint8)), 'of 8 x 8, not of 28'),
    (0, struct.pack('>4I', 0x803, 2 ** 32 - 1, 2 ** 32 - 1, 2 ** 32 - 1), 'unreasonable'),
    (0, gzip.compress(encode(np.zeros((30, 28, 28), np.uint8)), mtime=0)[:-9], 'Cannot read'),
    (0, gzip.compress(bytes(1 << 20), mtime=0), 'not an IDX file'),
    (1, encode(np.zeros(29, np.uint8)), '29 labels for 30 images'),
    (1, encode(np.full(30, 10, np.uint8)), 'label 10 is outside'),
    (1, None, 'holds no train-labels-idx1-ubyte'),
])
def test_wrong_files_are_named(tmp_path, which, content, message):
    write(tmp_path)
    path = tmp_path / FILES[True][which]
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        build(tmp_path)
    assert content is None or path.name in str(error.value)


def test_a_bomb_is_read_no_further_than_it_announces(tmp_path):
    path = tmp_path / 'x.gz'
    with gzip.open(path, 'wb') as file:
        file.write(struct.pack('>2I', 0x801, 10))
        for _ in range(64):
            file.write(bytes(1 << 20))
    with pytest.raises(UserError, match='found more'):
        read_idx(str(path), 1)


@contextlib.contextmanager
def serve(folder):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f'http://127.0.0.1:{server.server_port}'
    finally:
        server.shutdown()
        server.server_close()


def test_download(tmp_path, monkeypatch):
    served = tmp_path / 'served'
    arrays = write(served, is_gz=True)
    monkeypatch.setattr(paddle_cache, 'DATA_HOME', str(tmp_path / 'cache'))
    with serve(served) as url:
        for part, is_train in (('TRAIN', True), ('TEST', False)):
            for kind, name in zip(('IMAGE', 'LABEL'), FILES[is_train]):
                content = (served / f'{name}.gz').read_bytes()
                monkeypatch.setattr(FashionMNIST, f'{part}_{kind}_URL', f'{url}/{name}.gz')
                monkeypatch.setattr(FashionMNIST, f'{part}_{kind}_MD5',
                                    hashlib.md5(content, usedforsecurity=False).hexdigest())
        assert np.array_equal(build('').labels, arrays[True][1])
        monkeypatch.setattr(FashionMNIST, 'TEST_LABEL_MD5', '0' * 32)
        with pytest.raises(UserError, match='wrong MD5'):
            build('', False)
    assert np.array_equal(build('').labels, arrays[True][1])        # from the cache


def test_the_recipe_trains_from_idx_files(tmp_path):
    write(tmp_path / 'data')
    assert run_single(PROJECT, [
        f'-cfg={ROOT}/ViT/configs/vit_fashion_mnist.yaml', f'-data_path={tmp_path}/data',
        f'-output={tmp_path}/output', '-device=cpu', '-batch_size=8', '-num_workers=0', '-opts',
        'TRAIN.NUM_STEPS', '2', 'TRAIN.WARMUP_EPOCHS', '0', 'MODEL.DEPTH', '1']) == 0
    metrics, = (tmp_path / 'output').glob('train-*/metrics.jsonl')
    assert '"images": 10' in metrics.read_text()
