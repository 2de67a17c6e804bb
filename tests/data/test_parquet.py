"""Parquet files as Hugging Face publishes image sets, and wrong ones."""

import json
import os
import sys
import tracemalloc

import pytest

from common.data import parquet as reader_module
from common.data.datasets import build_dataset
from common.data.images import ImageError
from common.data.transforms import build_eval_transform
from common.errors import UserError
from tests.support.data_folders import make_config, make_image
from tests.support.paths import FIXTURES

pyarrow = pytest.importorskip('pyarrow', reason='pip install -r requirements-dev.txt')
from pyarrow import parquet  # noqa: E402

FOLDER = str(FIXTURES / 'sources')


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv('VIT_CACHE', str(tmp_path / 'cache'))
    return tmp_path / 'cache' / 'indexes'


@pytest.fixture
def picture(tmp_path):
    make_image(str(tmp_path / 'a.png'), size=(8, 8))
    return (tmp_path / 'a.png').read_bytes()


def build(path, is_train=True, **options):
    config = make_config(**{'DATA__DATASET': 'parquet', 'DATA__DATA_PATH': str(path), **options})
    return build_dataset(config, is_train, build_eval_transform(config))


def write(path, names=None, column='label', **columns):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    table = pyarrow.table(columns)
    if names is not None:
        info = {'info': {'features': {column: {'names': names}}}}
        table = table.replace_schema_metadata({'huggingface': json.dumps(info)})
    parquet.write_table(table, path, row_group_size=2)
    return path


def test_files_written_by_datasets():
    train, val = build(FOLDER), build(FOLDER, False)            # the part test validates
    assert train.class_names == val.class_names == ['cat', 'dog', 'emu']
    assert train.labels.tolist() == [0, 1, 2, 0] and val.labels.tolist() == [1, 2]
    pixels = [part.read(index).getpixel((2, 5)) for part in (train, val)
              for index in range(len(part))]
    assert pixels == [(16 * n, 255 - 16 * n, n) for n in range(6)]
    assert val.describe_sample(1) == f'{FOLDER}/test-00000-of-00001.parquet: row 1'


@pytest.mark.parametrize('columns, options, labels, names', [
    ({'img': [{'bytes': 'P', 'path': 'x.png'}], 'fine_label': [7]}, {}, [7], None),
    ({'image': ['P', 'P'], 'label': ['dog', 'cat']}, {}, [1, 0], ['cat', 'dog']),
    ({'pic': ['P'], 'label': [0], 'kind': [4]},
     {'DATA__IMAGE_COLUMN': 'pic', 'DATA__LABEL_COLUMN': 'kind'}, [4], None)])
def test_columns(tmp_path, picture, columns, options, labels, names):
    for values in columns.values():
        for number, value in enumerate(values):
            if value == 'P':
                values[number] = picture
            elif isinstance(value, dict):
                value['bytes'] = picture
    train = build(write(f'{tmp_path}/x.parquet', **columns), **options)
    assert train.labels.tolist() == labels and train.class_names == names
    assert train.read(0).size == (8, 8)


def test_rows_are_read_once_and_the_copy_serves_later_runs(tmp_path, picture, cache, monkeypatch):
    path = write(f'{tmp_path}/x.parquet', image=[picture] * 5, label=[1] * 5)
    assert len(build(path)) == 5
    with monkeypatch.context() as patch:
        patch.setattr(reader_module, 'build_index', None)
        train = build(path)
        assert train.read(4).size == (8, 8)
    copy, = (cache / name for name in os.listdir(cache) if name.endswith('.pictures'))
    assert os.path.getsize(copy) == 5 * len(picture)
    os.truncate(copy, 3)
    with pytest.raises(ImageError, match=r'x\.parquet: row 4: its copy in the cache is cut short'):
        train.read(4)
    assert build(path).read(4).size == (8, 8)                   # the copy is made again
    os.remove(copy)
    assert build(path).read(4).size == (8, 8)
    assert sorted(os.listdir(tmp_path)) == ['a.png', 'cache', 'x.parquet']


@pytest.mark.parametrize('columns, message', [
    ({'image': [b'P'], 'kind': [1]}, r"no column 'label' \(DATA.LABEL_COLUMN\).*image, kind"),
    ({'label': [1], 'kind': [1]}, r"no column 'image' \(DATA.IMAGE_COLUMN\)"),
    ({'image': ['text'], 'label': [1]}, "column 'image' is string"),
    ({'image': [b'P'], 'label': [1.5]}, "column 'label' is double"),
    ({'image': [b'P', None], 'label': [1, 1]}, 'row 1: no picture in it'),
    ({'image': [b'P', b'P'], 'label': [1, None]}, 'row 1: no label in it'),
    ({'image': [{'bytes': None, 'path': '/etc/passwd'}], 'label': [1]}, r'column .* is null'),
    ({'image': [b'P', b'P', b'P'], 'label': [1, 1, -1]}, "row 2: the label .* '-1'"),
    ({'image': [b'P', b'P'], 'label': [1, 3], 'names': ['a', 'b', 'c']}, '3 class names .* not'),
    ({'image': pyarrow.array([], pyarrow.binary()), 'label': pyarrow.array([], pyarrow.int64())},
     'no picture in it'),
])
def test_wrong_files_are_named_with_their_row(tmp_path, columns, message, cache):
    with pytest.raises(UserError, match=rf'x\.parquet.*{message}'):
        build(write(f'{tmp_path}/x.parquet', **columns))
    assert not [name for name in os.listdir(cache) if not name.endswith('.lock')]


def test_cut_files(tmp_path, picture):
    path = write(f'{tmp_path}/x.parquet', image=[picture] * 50, label=[1] * 50)
    with open(path, 'rb') as file:
        content = file.read()
    for cut in (0, 3, 50, len(content) // 2, len(content) - 1):
        with open(path, 'wb') as file:
            file.write(content[:cut])
        with pytest.raises(UserError, match=r'x\.parquet is not a whole parquet file'):
            build(path)


def test_different_class_names(tmp_path, picture):
    for number, names in enumerate((['a', 'b'], ['b', 'a'])):
        write(f'{tmp_path}/data/train-{number}.parquet', names, image=[picture], label=[0])
    with pytest.raises(UserError, match=r'train-1\.parquet has other class names'):
        build(tmp_path / 'data')


def test_no_room_and_no_cache(tmp_path, picture, monkeypatch):
    path = write(f'{tmp_path}/x.parquet', image=[picture], label=[1])
    with monkeypatch.context() as patch:
        patch.setattr(reader_module.shutil, 'disk_usage', lambda _: _Full())
        with pytest.raises(UserError, match='0.0 GB free.*VIT_CACHE'):
            build(path)
    monkeypatch.setenv('VIT_CACHE', f'{path}/below')
    with pytest.raises(UserError, match='Cannot write .*VIT_CACHE'):
        build(path)


class _Full:
    free = 0


def test_without_pyarrow_it_is_asked_for(tmp_path, monkeypatch):
    path = write(f'{tmp_path}/x.parquet', image=[b'P'], label=[1])
    monkeypatch.setitem(sys.modules, 'pyarrow', None)
    with pytest.raises(UserError, match='pip install pyarrow'):
        build(path)


def test_memory_is_bounded_by_a_few_pictures(tmp_path):
    big = os.urandom(1 << 20)
    path = f'{tmp_path}/x.parquet'
    table = pyarrow.table({'image': [big] * 200, 'label': [0] * 200})
    parquet.write_table(table, path, row_group_size=200, use_dictionary=False,
                        write_batch_size=4)
    del table
    usual = pyarrow.default_memory_pool()
    pool = pyarrow.proxy_memory_pool(usual)
    pyarrow.set_memory_pool(pool)
    tracemalloc.start()
    try:
        train = build(path)
    finally:
        pyarrow.set_memory_pool(usual)
        held, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    # The row group has 200 MB; what is held while it is copied is a few batches of 32 pictures.
    # A worker holds what read_bytes returns.
    assert 32 << 20 < pool.max_memory() < 128 << 20 and pool.bytes_allocated() == 0
    assert peak < 8 << 20 and held < 1 << 20
    assert train.reader.read_bytes(7) == big
