"""Classes matched by name; labels files."""

import os
import unicodedata
from types import SimpleNamespace

import numpy as np
import pytest

from common.data import classes
from common.data.classes import (
    are_among,
    list_known_names,
    match_classes,
    quote_name,
    read_class_names,
    read_imagenet_ids,
    rename_classes,
    write_class_names,
)
from common.data.datasets import open_dataset
from common.errors import UserError
from common.run.records import match_continued
from common.weights.load import _find_other_classes
from tests.support.data_folders import make_config, make_folders, make_lists


def match(found, recorded):
    return match_classes(found, recorded, 'the folder', 'the file')


def test_classes_are_matched_by_name():
    assert match(['a', 'b', 'c'], ['a', 'b', 'c']) == [0, 1, 2]
    assert match(['a', 'b', 'c'], ['c', 'a', 'b']) == [1, 2, 0]
    assert match(['c', 'a'], ['a', 'b', 'c']) == [2, 0]


@pytest.mark.parametrize(('found', 'recorded', 'parts'), [
    (['a', 'x'], ['a', 'b'], ['only in the data: x', 'only in the checkpoint: b']),
    (['a', 'b', 'c'], ['a', 'b'], ['only in the data: c']),
    (list('abcdefg'), ['a'], ['only in the data: b, c, d and 3 more'])])
def test_other_classes_are_refused_naming_both_sides(found, recorded, parts):
    with pytest.raises(UserError) as caught:
        match(found, recorded)
    for part in ['the folder, and the file, have other classes', *parts]:
        assert part in str(caught.value)


def test_equal_names_of_two_classes_cannot_be_matched():
    assert match(['crane', 'crane', 'b'], ['crane', 'crane', 'b']) == [0, 1, 2]
    assert match(['b'], ['crane', 'crane', 'b']) == [2]
    with pytest.raises(UserError, match='two classes are called crane'):
        match(['b', 'crane'], ['crane', 'crane', 'b'])


TAKEN_APART = [unicodedata.normalize('NFD', name) for name in ('café', 'pêche', 'Ärger')]


def test_accents_that_macos_takes_apart_are_the_same_letters():
    together = ['Ärger', 'café', 'pêche']
    assert not set(TAKEN_APART) & set(together)
    assert match(TAKEN_APART, together) == [1, 2, 0] == match(together[1:] + together[:1], together)
    assert are_among(TAKEN_APART[:2], together) and not are_among(['cafe'], together)
    with pytest.raises(UserError, match='only in the data: x; only in the checkpoint: Ärger'):
        match([*TAKEN_APART[:2], 'x'], together)
    # Both forms as two classes: as on Linux, where they are two folders.
    both = [TAKEN_APART[0], 'café']
    assert match(both[::-1], both) == [1, 0] and match(['café'], both) == [1]
    assert rename_classes(TAKEN_APART, together, 'labels.txt') == TAKEN_APART
    with pytest.raises(UserError, match=r'names pêche in line 1, which is the class in place 2'):
        rename_classes(TAKEN_APART, ['pêche', 'b', 'c'], 'labels.txt')


def test_accents_of_a_mac_in_what_a_checkpoint_records(tmp_path, caplog):
    dataset = open_dataset(make_config(DATA__VAL_FRACTION=0.25, DATA__DATA_PATH=make_folders(
        tmp_path, classes=sorted(TAKEN_APART), parts=('',))), True)
    labels, recorded = dataset.labels.tolist(), ['Ärger', 'café', 'pêche']
    checkpoint = {'path': 'x', 'config': None, 'class_names': recorded, 'data': None}
    caplog.clear()
    match_continued(checkpoint, [dataset], None, None)
    assert (dataset.labels.tolist(), dataset.class_names) == (labels, recorded)
    assert not caplog.messages              # none of another order
    names = SimpleNamespace(class_names=TAKEN_APART), SimpleNamespace(class_names=recorded)
    assert not _find_other_classes(*names, {'head.weight': [8, 3]}, ['head.weight'])
    names[0].class_names = [*TAKEN_APART[:2], 'x']
    assert _find_other_classes(*names, {'head.weight': [8, 3]}, ['head.weight'])


def test_accents_of_two_kinds_in_folders(tmp_path):
    root = make_folders(tmp_path, classes=['café', 'tea'])
    (tmp_path / 'labels.txt').write_text('tea\n' + TAKEN_APART[0])
    config = make_config(DATA__DATA_PATH=root, DATA__LABELS=str(tmp_path / 'labels.txt'))
    assert open_dataset(config, True).labels.tolist() == [1] * 4 + [0] * 4
    os.rename(tmp_path / 'val' / 'café', tmp_path / 'val' / TAKEN_APART[0])
    with pytest.raises(UserError, match=r'only in val: .*They look alike'):
        open_dataset(config, True)


def test_labels_file(tmp_path):
    path = tmp_path / 'labels.txt'
    path.write_bytes('\ufeffa\r\nb \nc d\n\n\n'.encode())
    assert read_class_names(path) == ['a', 'b', 'c d']
    for content, message in ((b'a\n\nc\n', 'line 2: an empty line'), (b'\n\n', 'is empty'),
                             (b'\xff\xfea\x00', 'not plain text')):
        path.write_bytes(content)
        with pytest.raises(UserError, match=message):
            read_class_names(path)
    with pytest.raises(UserError, match='No such file'):
        read_class_names(tmp_path / 'nowhere')


@pytest.mark.parametrize('text', ['a\n"b"\n"c d\n', 'a\r"b"\r"c d',
                                  '\ufeffa\r\n "b"\r\n"c d\r\n\r\n'])
def test_quotes_of_a_users_labels_file_belong_to_the_names(tmp_path, text):
    (tmp_path / 'labels.txt').write_bytes(text.encode())
    assert read_class_names(tmp_path / 'labels.txt') == ['a', '"b"', '"c d']


def make_odd_names(count, seed=0):
    """Return names of blanks, quotes, line ends of every kind, bytes that are not UTF-8."""
    letters = [*' "\\\t\n\r\x0b\x0c\x1c\x1b\x85\xa0\u2028\u3000\ufeff\udce9\udcff\0a#ä', '\\n',
               '\\u0020']
    rng = np.random.default_rng(seed)
    return [''.join(letters[letter] for letter in rng.integers(0, len(letters), size))
            for size in rng.integers(1, 6, count)]


def test_every_name_of_a_class_is_written_so_that_it_is_read_again(tmp_path):
    names = make_odd_names(5000)
    quoted = [quote_name(name) for name in names[:500]]
    twice = [quote_name(name) for name in quoted]
    for number, written in enumerate((names, quoted, twice, ['\ud800', ' a', 'a', 'a '])):
        write_class_names(tmp_path / str(number), written)
        assert read_class_names(tmp_path / str(number)) == written
    write_class_names(tmp_path / 'plain', ['a b', '"c"', '苹果', '\udce9'])
    assert (tmp_path / 'plain').read_bytes() == 'a b\n"c"\n苹果\n'.encode() + b'\xe9\n'


def test_a_labels_file_is_not_written_over(tmp_path):
    (tmp_path / 'mine').write_text('precious')
    (tmp_path / 'link').symlink_to(tmp_path / 'nowhere')
    for name in ('mine', 'link'):
        with pytest.raises(FileExistsError):
            write_class_names(tmp_path / name, ['a'])
    assert (tmp_path / 'mine').read_text() == 'precious' and not (tmp_path / 'nowhere').exists()


def test_labels_without_bound_are_refused(tmp_path):
    with open(tmp_path / 'labels.txt', 'wb') as file:
        file.write(b'a\nb')
        file.truncate(40 << 30)
    with pytest.raises(UserError, match=r'labels\.txt are not plain text'):
        read_class_names(tmp_path / 'labels.txt')
    with open(tmp_path / 'labels.txt', 'wb') as file:
        file.write(b'name of a class\n' * (5 << 20))
    with pytest.raises(UserError, match='larger than 64 MB'):
        read_class_names(tmp_path / 'labels.txt')
    os.mkfifo(tmp_path / 'pipe')
    with pytest.raises(UserError, match='not a regular file'):
        read_class_names(tmp_path / 'pipe')


def test_names_of_a_labels_file():
    assert rename_classes(None, ['a', 'b'], 'file') == ['a', 'b']
    assert rename_classes(['n1', 'n2'], ['cat', 'dog'], 'file') == ['cat', 'dog']
    assert rename_classes(['1', '10', '2'], ['1', '2', '10'], 'file') == ['1', '10', '2']
    assert rename_classes(['a', 'b', 'c'], ['a', 'b', 'sea'], 'file') == ['a', 'b', 'sea']
    with pytest.raises(UserError, match='file names b in line 1, which is the class in place 2'):
        rename_classes(['a', 'b', 'c'], ['b', 'a', 'sea'], 'file')
    with pytest.raises(UserError, match='file has 1 class names; there are 2 classes'):
        rename_classes(['a', 'b'], ['x'], 'file')


def test_a_labels_file_in_another_order_than_the_folders_misnames_nothing(tmp_path):
    root = make_folders(tmp_path, classes=('1', '10', '2'))
    (tmp_path / 'labels.txt').write_text('1\n2\n10\n')
    for is_train in (True, False):
        dataset = open_dataset(make_config(
            DATA__DATA_PATH=root, DATA__LABELS=str(tmp_path / 'labels.txt')), is_train)
        assert dataset.class_names == ['1', '2', '10']
        for index in range(len(dataset)):
            folder = dataset.describe_sample(index).split('/')[-2]
            assert dataset.class_names[dataset.labels[index]] == folder


def test_a_labels_file_with_more_classes_than_folders_numbers_them(tmp_path):
    root = make_folders(tmp_path, classes=('b', 'd'))
    (tmp_path / 'labels.txt').write_text('a\nb\nc\nd\n')
    dataset = open_dataset(make_config(
        DATA__DATA_PATH=root, DATA__LABELS=str(tmp_path / 'labels.txt')), True)
    assert dataset.class_names == ['a', 'b', 'c', 'd']
    assert sorted(set(dataset.labels.tolist())) == [1, 3]


def test_a_labels_file_names_the_labels_of_a_list(tmp_path):
    root = make_folders(tmp_path)
    make_lists(root, train='train/cat/0.jpg 1\n', val='val/cat/0.jpg 1\n')
    (tmp_path / 'labels.txt').write_text('x\ny\nz\n')
    options = {'DATA__DATA_PATH': root, 'DATA__LABELS': str(tmp_path / 'labels.txt')}
    dataset = open_dataset(make_config(**options), True)
    assert dataset.class_names == ['x', 'y', 'z'] and dataset.labels.tolist() == [1]
    (tmp_path / 'labels.txt').write_text('x\n')
    with pytest.raises(UserError, match='names 1 classes'):
        open_dataset(make_config(**options), True)


def test_relabelling_leaves_the_checksum(tmp_path):
    for dataset in (open_dataset(make_config(DATA__DATA_PATH=make_folders(tmp_path)), True),
                    open_dataset(make_config(DATA__DATASET='digits'), True)):
        before, labels = dataset.checksum(), dataset.labels.copy()
        count = dataset.num_classes
        dataset.relabel(list(range(count))[::-1], dataset.class_names[::-1])
        assert dataset.checksum() == before
        assert np.array_equal(dataset.labels, count - 1 - labels)


def test_imagenet_ids():
    ids = read_imagenet_ids()
    assert len(set(ids)) == 1000 and list(ids) == sorted(ids)
    # Known labels: tench, goldfish, great grey owl, tabby, toilet tissue.
    assert [ids.index(name) for name in ('n01440764', 'n01443537', 'n01622779', 'n02123045',
                                         'n15075141')] == [0, 1, 24, 281, 999]


def test_names_that_nobody_recorded():
    ids = list(read_imagenet_ids())
    assert list_known_names(None, 1000, [ids[5], ids[3]]) == ids
    assert list_known_names(['tench', *map(str, range(999))], 1000, [ids[5]]) == ids
    assert list_known_names(ids[::-1], 1000, ids) == ids[::-1]
    assert list_known_names(None, 999, [ids[5]]) is None
    assert list_known_names(None, 1000, ['100', '7'])[100] == '100'     # ImageNetV2's folders
    assert list_known_names(None, 999, ['100', '7']) is None
    assert list_known_names(None, 1000, ['cat']) is None
    assert list_known_names(None, 1000, None) is None
    assert list_known_names(['a', 'b'], 2, None) == ['a', 'b']


def test_differences_are_named_in_words():
    assert classes.compare_names(['a'], ['a', 'b']) == 'only in the checkpoint: b'
