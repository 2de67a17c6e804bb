"""Data sets in .zip and .tar files: the same as in folders, and archives that are refused."""

import gzip
import io
import os
import re
import shutil
import struct
import tarfile
import zipfile

import numpy as np
import pytest

from common.data import archives, members
from common.data.datasets import build_dataset
from common.data.images import ImageError
from common.data.transforms import build_train_transform
from common.errors import UserError
from tests.support.data_folders import make_config, make_folders, make_image, make_lists
from tests.support.sources import add_to_tar, list_files, write_tar, write_zip


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv('VIT_CACHE', str(tmp_path / 'cache'))
    return tmp_path / 'cache' / 'indexes'


def build(path, is_train=True, **options):
    config = make_config(DATA__DATA_PATH=str(path), **options)
    return build_dataset(config, is_train, build_train_transform(config))


def pack(root, kind):
    path = f'{root}.{kind.removesuffix(" deflated")}'
    if kind == 'tar':
        return write_tar(root, path)
    return write_zip(root, path, zipfile.ZIP_DEFLATED if 'deflated' in kind else zipfile.ZIP_STORED)


def assert_same(one, two):
    assert len(one) == len(two) and one.class_names == two.class_names
    assert one.checksum() == two.checksum()
    for index in range(len(one)):
        first, second = one[2, index], two[2, index]
        assert np.array_equal(first[0], second[0]) and first[1:] == second[1:]


KINDS = ['zip', 'zip deflated', 'tar']


# The same as the folder

@pytest.mark.parametrize('kind', KINDS)
def test_an_archive_is_its_folder(tmp_path, kind):
    root = make_folders(tmp_path / 'data', classes=('a', 'a b', 'ünï', 'B'))
    make_image(f'{root}/train/a/deeper/x.PNG')
    make_image(f'{root}/train/.hidden/x.png')
    make_image(f'{root}/train/a/._0.jpg.png')
    with open(f'{root}/train/a/notes.txt', 'w', encoding='utf-8') as file:
        file.write('text')
    path = pack(root, kind)
    for is_train in (True, False):
        assert_same(build(path, is_train), build(root, is_train))
    train = build(path)
    assert train.describe() == f'imagefolder: 17 training images, 4 classes from {path}'
    assert train.describe_sample(4) == f'{path}: train/a/0.jpg'


@pytest.mark.parametrize('kind', ['zip', 'tar'])
@pytest.mark.parametrize('prefix', ['pets/', './', './pets/'])
@pytest.mark.parametrize('parts', [('train', 'val'), ('',), ('train',)])
def test_a_folder_around_it_and_a_split_change_nothing(tmp_path, kind, prefix, parts):
    root = make_folders(tmp_path / 'data', parts=parts, per_class=6)
    writer = write_zip if kind == 'zip' else write_tar
    path = writer(root, tmp_path / f'x.{kind}', prefix=prefix)
    for is_train in (True, False):
        assert_same(build(path, is_train, DATA__VAL_FRACTION=0.34),
                    build(root, is_train, DATA__VAL_FRACTION=0.34))


@pytest.mark.parametrize('kind', KINDS)
def test_list_files_in_it_hold(tmp_path, kind):
    root = make_folders(tmp_path / 'data')
    make_lists(root, train='# names\ntrain/emu/3.jpg 1\ntrain/cat/0.jpg 4\ntrain/emu/3.jpg 1\n',
               val='val/dog/2.jpg 2')
    path = pack(root, kind)
    for is_train in (True, False):
        assert_same(build(path, is_train), build(root, is_train))
    with pytest.raises(UserError, match=r'train_list\.txt: label 4 is outside the 3 classes'):
        build(path, MODEL__NUM_CLASSES=3)
    os.remove(f'{root}/val_list.txt')
    with pytest.raises(UserError, match=r'no .*val_list\.txt, although there is .*train_list\.txt'):
        build(pack(root, kind), False)
    make_lists(root, train='train/cat/0.jpg 4\ntrain/cat/none.jpg 4')
    with pytest.raises(UserError, match=r'train_list\.txt, line 2: no such image.*none\.jpg'):
        build(pack(root, kind))


@pytest.mark.parametrize('kind', ['zip', 'tar'])
def test_what_is_left_out_is_said_and_a_class_may_be_called_train(tmp_path, kind, caplog):
    root = make_folders(tmp_path / 'data', classes=('train', 'car'), parts=('',))
    (tmp_path / 'data' / 'car' / 'x.heic').write_text('text')
    (tmp_path / 'data' / 'car' / '.x').write_text('text')
    (tmp_path / 'data' / 'bus').mkdir()
    (tmp_path / 'data' / 'bus' / 'x.heic').write_text('text')
    (tmp_path / 'data' / 'bus' / 'x.txt').write_text('text')
    logs = []
    for path in (root, pack(root, kind)):
        caplog.clear()
        assert build(path).class_names == ['bus', 'car', 'train']
        logs.append(caplog.text.replace(root + '.' + kind, root))
    assert logs[0] == logs[1] and '.heic 2, .txt 1' in logs[0]
    assert '1 class folders hold no picture: bus' in logs[0]


def test_faults_of_a_layout_are_named_as_in_folders(tmp_path):
    root = make_folders(tmp_path / 'data', parts=('train',))
    path = pack(root, 'zip')
    with pytest.raises(UserError, match=r'data\.zip has no val folder.*VAL_FRACTION'):
        build(path, False)
    make_image(f'{root}/val/x.jpg')
    with pytest.raises(UserError, match=r'data\.zip: val has images but no class folders'):
        build(pack(root, 'zip'))
    os.remove(f'{root}/val/x.jpg')
    make_image(f'{root}/val/fox/x.jpg')
    with pytest.raises(UserError, match='only in train: cat'):
        build(pack(root, 'tar'))
    shutil.rmtree(f'{root}/train')
    with pytest.raises(UserError, match='no train folder to train on'):
        build(pack(root, 'tar'))


def test_zip64_and_something_in_front(tmp_path, monkeypatch):
    root = make_folders(tmp_path / 'data')
    monkeypatch.setattr(zipfile, 'ZIP64_LIMIT', 300)
    monkeypatch.setattr(zipfile, 'ZIP_FILECOUNT_LIMIT', 5)
    path = pack(root, 'zip')
    with open(path, 'rb') as file:
        content = file.read()
    assert b'PK\x06\x06' in content and b'PK\x06\x07' in content
    assert_same(build(path), build(root))
    monkeypatch.undo()
    monkeypatch.setenv('VIT_CACHE', str(tmp_path / 'cache'))
    path = pack(root, 'zip')
    with open(path, 'rb') as file:
        content = file.read()
    with open(path, 'wb') as file:
        file.write(b'#!/bin/sh\nexit\n' + content)
    assert_same(build(path), build(root))


def test_many_archives_are_read_with_few_files_open(tmp_path, monkeypatch):
    monkeypatch.setattr(members, 'MAX_OPEN_FILES', 3)
    paths = []
    for number in range(10):
        paths.append(str(tmp_path / str(number)))
        with open(paths[-1], 'wb') as file:
            file.write(b'%d' % number * 4)
    files = members.MemberFiles(paths)
    before = len(os.listdir('/proc/self/fd'))
    for number in [*range(10), *range(10)]:
        assert files.read(number, 1, 2) == b'%d' % number * 2
    assert len(os.listdir('/proc/self/fd')) <= before + 3


def test_a_tar_that_ends_with_a_zip_is_a_tar(tmp_path):
    root = make_folders(tmp_path / 'data', parts=('',))
    inner = write_zip(root, tmp_path / 'data' / 'inner.zip')
    names = [name for name in list_files(root) if name != 'inner.zip']
    path = write_tar(root, tmp_path / 'x.bin', names=[*names, os.path.basename(inner)])
    assert members.recognise_archive(path) == 'tar' and len(build(path)) == 12


# The index

def test_the_index_is_made_once_and_anew_when_the_archive_changes(tmp_path, cache, monkeypatch):
    root = make_folders(tmp_path / 'data')
    path = pack(root, 'tar')
    build(path)
    kept = [name for name in os.listdir(cache) if name.endswith('.npz')]
    assert len(kept) == 1

    def fail(*arguments):
        raise AssertionError('indexed again')

    with monkeypatch.context() as patch:
        patch.setattr(archives, 'list_members', fail)
        assert len(build(path)) == 12 and len(build(path, False)) == 12
        os.utime(path, ns=(1, 1))
        with pytest.raises(AssertionError, match='indexed again'):
            build(path)
    make_image(f'{root}/train/cat/new.jpg')
    pack(root, 'tar')
    assert len(build(path)) == 13
    assert [name for name in os.listdir(cache) if name.endswith('.npz')] == kept


def test_training_and_validation_share_one_index(tmp_path):
    path = pack(make_folders(tmp_path / 'data'), 'zip')
    train = build(path)
    first, second = archives.ArchiveTree(path), archives.ArchiveTree(path)
    assert first._all.table is second._all.table
    assert np.shares_memory(train.reader.places['offset'], first._all.places['offset'])
    del train, first, second
    assert not archives._IN_USE


@pytest.mark.parametrize('spoil', ['cut', 'text', 'pickle', 'offset', 'label', 'size', 'span',
                                   'lengths', 'names', 'shape'])
def test_a_damaged_index_is_made_again(tmp_path, cache, spoil):
    root = make_folders(tmp_path / 'data')
    path = pack(root, 'zip')
    build(path)
    index, = (cache / name for name in os.listdir(cache) if name.endswith('.npz'))
    arrays = {name: array.copy() for name, array in np.load(index).items()}
    if spoil == 'cut':
        os.truncate(index, 500)
    elif spoil == 'text':
        index.write_text('no index')
    else:
        if spoil == 'pickle':
            arrays['names'] = np.array([{}], object)
        elif spoil == 'offset':
            arrays['offset'][3] = 1 << 40
        elif spoil == 'label':
            arrays['labels'][3] = 3
        elif spoil == 'size':
            arrays['size'][3] = 1 << 31
        elif spoil == 'span':
            text = arrays['header'].tobytes().replace(b'"train": [0', b'"train": [9')
            arrays['header'] = np.frombuffer(text.replace(b'[9, 12', b'[9, 99'), np.uint8)
        elif spoil == 'lengths':
            arrays['lengths'][3] += 1
        elif spoil == 'names':
            arrays['names'] = arrays['names'].astype(np.int64)
        elif spoil == 'shape':
            arrays['crc'] = arrays['crc'][:-1]
        np.savez(index, **arrays)
    assert_same(build(path), build(root))
    with np.load(index, allow_pickle=False) as again:
        assert len(again['lengths']) == 24


def test_a_cache_that_cannot_be_written_costs_only_the_index(tmp_path, monkeypatch):
    path = pack(make_folders(tmp_path / 'data'), 'zip')
    (tmp_path / 'file').write_text('')
    monkeypatch.setenv('VIT_CACHE', str(tmp_path / 'file' / 'below'))
    assert len(build(path)) == 12


# Hostile and damaged archives

def make_tar(path, **members):
    with tarfile.open(path, 'w') as archive:
        for name, fields in members.items():
            add_to_tar(archive, name, **fields)
    return path


def refuse(path, message, root):
    """Building from `path` must fail with the archive's name and `message`, writing no file."""
    before = sorted(os.listdir(root))
    with pytest.raises(UserError) as error:
        build(path)
    text = str(error.value)
    assert re.search(message, text), text
    assert os.path.basename(path) in text and text.isprintable() and len(text) < 600
    assert sorted(os.listdir(root)) == before or set(os.listdir(root)) - set(before) == {'cache'}


BAD_NAMES = ['../x/a.jpg', '/etc/a.jpg', 'cat/../../a.jpg', 'C:\\x\\a.jpg', 'cat\\..\\..\\a.jpg']


@pytest.mark.parametrize('name', BAD_NAMES)
@pytest.mark.parametrize('kind', ['zip', 'tar'])
def test_names_that_leave_the_root(tmp_path, name, kind):
    path = tmp_path / f'x.{kind}'
    if kind == 'tar':
        make_tar(path, **{'cat/1.jpg': {}, name: {'data': b'x'}})
    else:
        with zipfile.ZipFile(path, 'w') as archive:
            archive.writestr('cat/1.jpg', b'')
            archive.writestr(name, b'x')
    refuse(path, "leaves the archive's root", tmp_path)


@pytest.mark.parametrize('fields, message', [
    ({'type': tarfile.SYMTYPE, 'linkname': '/etc/passwd'}, r'x\.tar: cat/2\.jpg: a link'),
    ({'type': tarfile.LNKTYPE, 'linkname': 'cat/1.jpg'}, r'cat/2\.jpg: a link.*--dereference'),
    ({'type': tarfile.FIFOTYPE}, 'neither a plain file nor a folder'),
    ({'type': tarfile.CHRTYPE}, 'neither a plain file nor a folder'),
])
def test_links_and_devices(tmp_path, fields, message):
    path = make_tar(tmp_path / 'x.tar', **{'cat/1.jpg': {}, 'cat/2.jpg': fields})
    refuse(path, message, tmp_path)


def test_link_in_a_zip(tmp_path):
    path = tmp_path / 'x.zip'
    with zipfile.ZipFile(path, 'w') as archive:
        info = zipfile.ZipInfo('cat/1.jpg')
        info.create_system, info.external_attr = 3, 0o120777 << 16
        archive.writestr(info, '/etc/passwd')
    refuse(path, r'cat/1\.jpg: a link', tmp_path)


@pytest.mark.parametrize('kind', ['zip', 'tar'])
def test_members_of_one_name(tmp_path, kind):
    root = make_folders(tmp_path / 'data', parts=('',))
    names = ['cat/1.jpg', 'dog/1.jpg', 'cat/1.jpg']
    path = tmp_path / f'x.{kind}'
    if kind == 'tar':
        write_tar(root, path, names=names)
    else:
        with pytest.warns(UserWarning):
            write_zip(root, path, names=names)
    refuse(path, r'cat/1\.jpg: is in the archive more than once', tmp_path)


def change_entry(path, place, form, value):
    """Change a field of the first entry in a .zip file's list of members."""
    with open(path, 'r+b') as file:
        content = file.read()
        file.seek(content.index(b'PK\x01\x02') + place)
        file.write(struct.pack(form, value))


@pytest.mark.parametrize('place, form, value, message', [
    (8, '<H', 1, 'encrypted. Pack'),
    (10, '<H', 14, 'compressed by method 14'),
    (24, '<I', 1 << 30, 'too many for a picture'),
    (24, '<I', 1 << 28, 'cannot hold'),
    (20, '<I', 1 << 28, 'lies outside'),
    (42, '<I', 1 << 30, 'lies outside'),
    (42, '<I', 0xFFFFFFFF, 'zip64 field is missing'),
    (0, '<I', 0, 'damaged'),
])
@pytest.mark.parametrize('method', [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_entries_of_a_zip_that_cannot_be(tmp_path, place, form, value, message, method):
    root = make_folders(tmp_path / 'data', parts=('',))
    path = write_zip(root, tmp_path / 'x.zip', method)
    change_entry(path, place, form, value)
    refuse(path, message, tmp_path)


def test_a_bomb_stops_at_what_it_announces(tmp_path):
    path = tmp_path / 'x.zip'
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('cat/1.jpg', bytes(50 << 20))
        archive.writestr('dog/1.jpg', b'')
    change_entry(path, 24, '<I', 1000)
    dataset = build(path)
    with pytest.raises(ImageError, match=r'x\.zip: cat/1\.jpg: damaged'):
        dataset.read(0)
    with pytest.raises(ImageError, match=r'x\.zip: dog/1\.jpg: the file is empty'):
        dataset.read(1)


@pytest.mark.parametrize('kind', KINDS)
def test_every_cut_is_an_error(tmp_path, kind):
    root = make_folders(tmp_path / 'data', parts=('',), per_class=2)
    path = pack(root, kind)
    with open(path, 'rb') as file:
        content = file.read()
    end = len(content) if kind != 'tar' else len(content.rstrip(b'\0'))
    cuts = {end * n // 40 for n in range(40)} | set(range(0, end, 512))
    for cut in sorted(cuts):
        with open(path, 'wb') as file:
            file.write(content[:cut])
        with pytest.raises(UserError, match=rf'data\.{kind[:3]}'):
            build(path)


@pytest.mark.parametrize('kind', KINDS)
def test_damaged_bytes_never_end_otherwise_than_with_an_error(tmp_path, kind):
    root = make_folders(tmp_path / 'data', parts=('',), per_class=1)
    path = pack(root, kind)
    with open(path, 'rb') as file:
        content = file.read()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        damaged = bytearray(content)
        region = rng.choice([0, len(content) - 600])
        for place in rng.integers(region, region + 600, 3):
            damaged[place] = rng.integers(256)
        with open(path, 'wb') as file:
            file.write(damaged)
        try:
            dataset = build(path)
            for index in range(len(dataset)):
                dataset.read(index)
        except UserError as error:
            refused += 1
            assert 'data.' in str(error)
    assert refused > 15


def test_a_picture_damaged_in_a_zip_is_named(tmp_path):
    root = make_folders(tmp_path / 'data', parts=('',))
    path = pack(root, 'zip')
    with open(path, 'rb') as file:
        content = bytearray(file.read())
    content[content.index(b'PK\x03\x04', 10) - 20] ^= 1         # in the first picture, emu/3.jpg
    with open(path, 'wb') as file:
        file.write(content)
    dataset = build(path)
    assert len([dataset.read(index) for index in range(11)]) == 11
    with pytest.raises(ImageError, match=r'data\.zip: emu/3\.jpg: damaged: its size or checksum'):
        dataset.read(11)


def test_an_archive_that_shrinks_during_the_run(tmp_path):
    for kind in KINDS:
        path = pack(make_folders(tmp_path / kind, parts=('',)), kind)
        dataset = build(path)
        os.truncate(path, 10)
        with pytest.raises(ImageError, match=rf'{kind[:3]}: cat/1\.jpg: the archive ends'):
            dataset.read(1)


def test_archives_compressed_as_a_whole_are_refused_with_what_to_do(tmp_path):
    path = pack(make_folders(tmp_path / 'data'), 'tar')
    with open(path, 'rb') as file:
        content = file.read()
    for name in ('x.tar.gz', 'x.tar'):
        with gzip.open(tmp_path / name, 'wb') as file:
            file.write(content)
        refuse(tmp_path / name, 'compressed as a whole.*gunzip', tmp_path)
    (tmp_path / 'x.bin').write_bytes(b'anything' * 100)
    refuse(tmp_path / 'x.bin', 'neither a .zip nor a .tar', tmp_path)
    (tmp_path / 'x.rar').write_bytes(b'Rar!anything')
    refuse(tmp_path / 'x.rar', 'RAR', tmp_path)


def test_endless_headers_of_a_tar(tmp_path):
    long_name = tarfile.TarInfo('././@LongLink')
    long_name.type, long_name.size = tarfile.GNUTYPE_LONGNAME, 0
    block = long_name.tobuf(tarfile.GNU_FORMAT)
    (tmp_path / 'x.tar').write_bytes(block * 5000 + bytes(1024))
    refuse(tmp_path / 'x.tar', 'not a whole .tar', tmp_path)
    negative = io.BytesIO()
    with tarfile.open(fileobj=negative, mode='w', format=tarfile.GNU_FORMAT) as archive:
        add_to_tar(archive, 'cat/1.jpg', b'x' * 600)
        add_to_tar(archive, 'cat/2.jpg', b'x' * 600)
    content = bytearray(negative.getvalue())
    start = content.index(b'cat/2.jpg')
    content[start + 124:start + 136] = b'\xff' * 10 + b'\xf8\x00'       # size -2048
    checksum = sum(content[start:start + 512]) - sum(content[start + 148:start + 156]) + 8 * 32
    content[start + 148:start + 156] = b'%06o\0 ' % checksum
    (tmp_path / 'x.tar').write_bytes(content)
    refuse(tmp_path / 'x.tar', 'not a whole .tar', tmp_path)
