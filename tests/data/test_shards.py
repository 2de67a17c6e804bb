"""WebDataset shards: those that the package writes, label forms, patterns, and wrong shards."""

import json
import os
import shutil
import tarfile

import numpy as np
import pytest

from common.data import shards
from common.data.datasets import build_dataset
from common.data.images import ImageError
from common.data.parts import expand_braces, find_files
from common.data.transforms import build_eval_transform
from common.errors import UserError
from tests.support.data_folders import make_config, make_image
from tests.support.paths import FIXTURES
from tests.support.sources import add_to_tar

FOLDER = str(FIXTURES / 'sources')


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv('VIT_CACHE', str(tmp_path / 'cache'))


@pytest.fixture
def picture(tmp_path):
    make_image(str(tmp_path / 'a.png'), size=(8, 8))
    return (tmp_path / 'a.png').read_bytes()


def build(path, is_train=True, **options):
    config = make_config(**{'DATA__DATASET': 'shards', 'DATA__DATA_PATH': str(path), **options})
    return build_dataset(config, is_train, build_eval_transform(config))


def write(path, members):
    with tarfile.open(path, 'w') as archive:
        for name, data in members:
            add_to_tar(archive, name, data)
    return str(path)


def colour(number):
    """Of picture `number` of the fixtures."""
    return 16 * number, 255 - 16 * number, number


def test_shards_written_by_webdataset():
    train = build(f'{FOLDER}/cls-{{000000..000001}}.tar')
    assert train.labels.tolist() == [0, 1, 2, 0, 1, 2] and train.class_names is None
    assert [train.read(index).getpixel((3, 3)) for index in range(6)] == list(map(colour, range(6)))
    assert train.describe_sample(4) == f'{FOLDER}/cls-000001.tar: 000004.png'
    assert '6 training images, 3 classes from 2 shards in' in train.describe()
    named = build(f'{FOLDER}/json.tar')
    assert named.class_names == ['cat', 'dog', 'emu'] and named.labels.tolist() == [0, 1, 2] * 2
    assert named.read(5).getpixel((0, 0)) == colour(5)


@pytest.mark.parametrize('members, label, names', [
    ({'cls': b'7'}, 7, None), ({'cls': b' 7\n', 'txt': b'a caption'}, 7, None),
    ({'txt': 'Ünï'.encode()}, 0, ['Ünï']), ({'json': b'{"label": 3, "id": "x"}'}, 3, None),
    ({'json': b'{"cls": "dog"}'}, 0, ['dog']), ({'json': b'4'}, 4, None),
    ({'json': b'{"width": 8}', 'cls': b'1'}, 1, None), ({'CLS': b'2'}, 2, None)])
def test_labels(tmp_path, picture, members, label, names):
    path = write(tmp_path / 'x.tar', [('a/b.webp', picture)] + [
        (f'a/b.{ending}', data) for ending, data in members.items()])
    train = build(path)
    assert train.labels.tolist() == [label] and train.class_names == names
    assert train.reader.table.name(0) == b'a/b.webp'


def test_label_under_another_key(tmp_path, picture):
    path = write(tmp_path / 'x.tar', [('b.jpg', picture), ('b.json', b'{"label": 1, "kind": "x"}')])
    assert build(path, DATA__LABEL_COLUMN='kind').class_names == ['x']
    assert build(path).labels.tolist() == [1]
    with pytest.raises(UserError, match=r'x\.tar: b\.json: expected a label.*"colour"'):
        build(path, DATA__LABEL_COLUMN='colour')


def test_parts_by_name_by_path_and_by_fraction(tmp_path, picture):
    def shard(name, count):
        os.makedirs(os.path.dirname(tmp_path / name), exist_ok=True)
        return write(tmp_path / name, [
            (f'{name[0]}{n:03}.{ending}', data) for n in range(count)
            for ending, data in (('jpg', picture), ('cls', b'%d' % (n % 2)))])

    shard('a/im-train-0.tar', 6)
    shard('a/im-train-1.tar', 4)
    shard('a/im-validation-0.tar', 2)
    assert [len(build(tmp_path / 'a', part)) for part in (True, False)] == [10, 2]
    shard('b/train/0.tar', 8)
    shard('b/test/0.tar', 4)
    assert [len(build(tmp_path / 'b', part)) for part in (True, False)] == [8, 4]
    alone = shard('c/0.tar', 20)
    parts = [build(tmp_path / 'c', part, DATA__VAL_FRACTION=0.2) for part in (True, False)]
    assert list(map(len, parts)) == [16, 4] and parts[1].is_split
    assert not {*parts[0].reader.table.iterate_names()} & {*parts[1].reader.table.iterate_names()}
    several = f'{alone}::{tmp_path}/a/im-train-*.tar'
    assert [len(build(several, part, DATA__VAL_PATH=str(tmp_path / 'b' / 'test')))
            for part in (True, False)] == [30, 4]
    with pytest.raises(UserError, match='no validation data'):
        build(alone, False)
    with pytest.raises(UserError, match='both training and validation'):
        build(alone, DATA__VAL_PATH=alone)
    shard('a/more.tar', 1)
    with pytest.raises(UserError, match=r'more\.tar: is it training or validation'):
        build(tmp_path / 'a')


def test_patterns():
    assert expand_braces('x-{008..011}.tar') == ['x-008.tar', 'x-009.tar', 'x-010.tar', 'x-011.tar']
    assert expand_braces('{a,b}/{0..1}') == ['a/0', 'a/1', 'b/0', 'b/1']
    assert expand_braces('x{0..10}')[10] == 'x10'
    for pattern in ('{0..99999999}', '{0..9999}{0..9999}'):
        with pytest.raises(UserError, match='too many'):
            expand_braces(pattern)


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(UserError, match=r'needs its \.tar files'):
        find_files('', '', '.tar')
    with pytest.raises(UserError, match='No such file or folder'):
        build(tmp_path / 'x.tar')
    with pytest.raises(UserError, match=r'holds no \.tar file'):
        build(tmp_path)
    shutil.copy(f'{FOLDER}/cls-000000.tar', tmp_path / 'x-0.tar')
    with pytest.raises(UserError, match=r'9 of 10 files are missing, such as .*x-1\.tar'):
        build(f'{tmp_path}/x-{{0..9}}.tar')


@pytest.mark.parametrize('members, message', [
    ([('readme.md', b'x')], 'no picture in this shard'),
    ([('a.txt', b'cat'), ('b.jpg', b'P')], 'a: a label without a picture'),
    ([('a.jpg', b'P')], 'a: no label. Expected .cls, .json, .txt'),
    ([('a.b.jpg', b'P'), ('a.c.jpg', b'P'), ('a.cls', b'1')], 'a: 2 pictures in one sample'),
    ([('a.jpg', b'P'), ('a.cls', b'1'), ('a.jpg', b'P')], r'a\.jpg: is in the shard more than'),
    ([('a.jpg', b'P'), ('a.cls', b'')], r'a\.cls: the label'),
    ([('a.jpg', b'P'), ('a.txt', b'cat'), ('b.jpg', b'P'), ('b.txt', b'')], r'b\.txt: the label'),
    ([('a.jpg', b'P'), ('a.cls', b'-3')], r"a\.cls: the label must be .* '-3'"),
    ([('a.jpg', b'P'), ('a.cls', b'\xff')], r'a\.cls: not UTF-8'),
    ([('a.jpg', b'P'), ('a.json', b'{')], r'a\.json: not JSON'),
    ([('a.jpg', b'P'), ('a.json', b'[' * 100_000)], r'a\.json: not JSON'),
    ([('a.jpg', b'P'), ('a.json', b'{"label": [1]}')], r'a\.json: expected a label'),
    ([('a.jpg', b'P'), ('a.json', b'{"label": true}')], r'a\.json: expected a label'),
    ([('a.jpg', b'P'), ('a.txt', b'x' * (2 << 20))], r'a\.txt: 2,097,152 bytes are too many'),
    ([('../a.jpg', b'P'), ('../a.cls', b'1')], 'leaves'),
])
def test_wrong_shards_are_named_with_their_member(tmp_path, members, message):
    path = write(tmp_path / 'x.tar', members)
    with pytest.raises(UserError, match=rf'x\.tar.*{message}') as error:
        build(path)
    assert str(error.value).isprintable() and len(str(error.value)) < 500


def test_cut_and_compressed_shards(tmp_path, picture):
    path = write(tmp_path / 'x.tar', [('a.jpg', picture), ('a.cls', b'1')])
    size = os.path.getsize(path)
    with open(path, 'rb') as file:
        content = file.read()
    for cut in (0, 100, 512, 800, 1024, 2048):
        with open(path, 'wb') as file:
            file.write(content[:cut])
        with pytest.raises(UserError, match=r'x\.tar is not a whole \.tar'):
            build(path)
    with tarfile.open(tmp_path / 'x.tar.gz', 'w:gz') as archive:
        add_to_tar(archive, 'a.jpg', picture)
    os.remove(path)
    with pytest.raises(UserError, match='compressed as a whole'):
        build(tmp_path)
    assert size > 2048


def test_a_shard_that_changes_during_the_run_is_named(tmp_path, picture):
    path = write(tmp_path / 'x.tar', [('a.jpg', picture), ('a.cls', b'1')])
    train = build(path)
    os.truncate(path, 600)
    with pytest.raises(ImageError, match=r'x\.tar: a\.jpg: the archive ends'):
        train.read(0)


def test_only_the_shards_that_are_read_are_opened(tmp_path, picture, monkeypatch):
    paths = [write(tmp_path / f'{n}.tar', [(f'{n}.jpg', picture), (f'{n}.cls', b'%d' % n)])
             for n in range(4)]
    build('::'.join(paths))
    monkeypatch.setattr(shards, 'list_members', None)           # the index is at hand
    train = build('::'.join(paths))
    assert train.reader.files._open == {}
    train.read(2)
    assert list(train.reader.files._open) == [2]


def test_a_damaged_index_of_shards_is_made_again(tmp_path):
    train = build(f'{FOLDER}/json.tar')
    folder = tmp_path / 'cache' / 'indexes'
    index, = (folder / name for name in os.listdir(folder) if name.endswith('.npz'))
    for name, value in (('shard', 1), ('shard', -1), ('labels', 3), ('offset', 1 << 40)):
        arrays = {key: array.copy() for key, array in np.load(index).items()}
        arrays[name][2] = value
        np.savez(index, **arrays)
        assert np.array_equal(build(f'{FOLDER}/json.tar').labels, train.labels)
    arrays = dict(np.load(index))
    header = json.loads(arrays['header'].tobytes())
    arrays['header'] = np.frombuffer(json.dumps({**header, 'class_names': 3}).encode(), np.uint8)
    np.savez(index, **arrays)
    assert build(f'{FOLDER}/json.tar').class_names == ['cat', 'dog', 'emu']
