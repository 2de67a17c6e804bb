"""Folders are read by one rule: hidden, linked, circular, closed; files that are no pictures."""

import logging
import os
import shutil

import numpy as np
import pytest

from common.data.datasets import build_files, open_dataset
from common.data.folders import count_endings, describe_endings, list_folder, walk
from common.data.trees import find_root
from common.deploy.pictures import find_pictures
from common.errors import UserError
from tests.support.data_folders import make_config, make_folders, make_image, make_lists
from tests.support.sources import write_tar, write_zip


def open_part(root, is_train=True, **options):
    return open_dataset(make_config(DATA__DATA_PATH=str(root), **options), is_train)


def test_training_and_prediction_read_the_same_pictures(tmp_path):
    root = make_folders(tmp_path / 'data')
    cat = tmp_path / 'data/train/cat'
    make_image(cat / '.ipynb_checkpoints/0.jpg')
    make_image(cat / '.hidden.jpg')
    make_image(cat / '__MACOSX/0.jpg')
    make_image(tmp_path / 'elsewhere/linked.jpg')
    (cat / 'linked').symlink_to(tmp_path / 'elsewhere')
    (cat / 'again').symlink_to('.')
    make_image(tmp_path / 'data/train/__MACOSX/0.jpg')
    train = open_part(root)
    assert train.class_names == ['cat', 'dog', 'emu']
    assert len(train) == 13
    found = [picture.name for picture in find_pictures([os.path.join(root, 'train')], ())]
    assert len(found) == 13 and os.path.join('cat', 'linked', 'linked.jpg') in found


def test_a_circle_of_links_ends(tmp_path):
    for name in ('a', 'b'):
        make_image(tmp_path / name / 'one.jpg')
    (tmp_path / 'a/to_b').symlink_to(tmp_path / 'b')
    (tmp_path / 'b/to_a').symlink_to(tmp_path / 'a')
    (tmp_path / 'b/dangling').symlink_to(tmp_path / 'nowhere')
    pictures = [os.path.join(folder, name) for folder, listing in walk(str(tmp_path / 'a'))
                for name in listing.pictures]
    assert [os.path.relpath(path, tmp_path) for path in pictures] == ['a/one.jpg', 'a/to_b/one.jpg']


@pytest.mark.parametrize('place', ['train/dog', 'train/dog/deep', 'train', '.'])
def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch, place):
    root = make_folders(tmp_path)
    os.makedirs(tmp_path / 'train/dog/deep', exist_ok=True)
    closed, scan = os.path.normpath(tmp_path / place), os.scandir

    def scandir(path):
        if os.path.normpath(path) == closed:
            raise PermissionError(13, 'Permission denied', path)
        return scan(path)

    monkeypatch.setattr(os, 'scandir', scandir)
    with pytest.raises(UserError, match='Cannot read the folder .*: Permission denied') as caught:
        open_part(root)
    assert closed in str(caught.value)
    with pytest.raises(UserError, match='Permission denied'):
        list(find_pictures([root], ()))


def test_pictures_left_out_for_their_ending_are_counted_and_said(tmp_path, caplog):
    root = make_folders(tmp_path)
    for number in range(4):
        os.rename(tmp_path / f'train/emu/{number}.jpg', tmp_path / f'train/emu/{number}.xcf')
    (tmp_path / 'train/cat/notes.txt').write_text('x')
    with caplog.at_level(logging.WARNING, 'common'):
        train = open_part(root)
    assert len(train) == 8 and train.class_names == ['cat', 'dog', 'emu']
    folder = tmp_path / 'train'
    assert caplog.messages == [
        f'{folder}: 5 files have no ending of a picture and are left out (.xcf 4, .txt 1)',
        f'{folder}: 1 class folders hold no picture: emu']


@pytest.mark.parametrize('pack', [str, write_zip, write_tar])
def test_pictures_in_no_class_folder_are_counted_and_said(tmp_path, pack, caplog):
    root = make_folders(tmp_path / 'data', parts=('train',))
    for name in ('a', 'b'):
        make_image(f'{root}/train/{name}.jpg')
    path = root if pack is str else pack(root, tmp_path / 'packed')
    assert len(open_part(path)) == 12
    message, = caplog.messages
    assert message.endswith('train: 2 pictures lie in no class folder, and are left out')


def test_endings_are_listed_with_their_counts():
    counts = count_endings(['a.HEIC', 'b.heic', 'c', 'd.txt'])
    assert describe_endings(counts) == '.heic 2, none 1, .txt 1'
    assert describe_endings(count_endings(f'a.{n}' for n in range(9))).endswith(', ...')


# A class called "train"

def test_a_class_may_be_called_train(tmp_path):
    root = make_folders(tmp_path, classes=('bus', 'car', 'train'), parts=('',))
    train = open_part(root, DATA__VAL_FRACTION=0.25)
    assert train.class_names == ['bus', 'car', 'train'] and len(train) == 9
    assert open_part(root, False, DATA__VAL_FRACTION=0.25).class_names == train.class_names


@pytest.mark.parametrize('given', ['', 'train', 'val'])
def test_a_class_called_train_in_train_and_val(tmp_path, given):
    root = make_folders(tmp_path, classes=('bus', 'car', 'train'))
    assert find_root(os.path.join(root, given)) == root
    train = open_part(os.path.join(root, given))
    assert train.class_names == ['bus', 'car', 'train'] and len(train) == 12


@pytest.mark.parametrize('pack', [str, write_zip, write_tar])
@pytest.mark.parametrize('train, val', [('Training', 'Validation'), ('TRAIN', 'dev'),
                                        ('train', 'valid')])
def test_parts_are_what_people_call_them(tmp_path, pack, train, val):
    usual = make_folders(tmp_path / 'usual')
    root = make_folders(tmp_path / 'data')
    for old, new in (('train', train), ('val', val)):
        os.rename(f'{root}/{old}', f'{root}/{new}')
    path = root if pack is str else pack(root, tmp_path / 'packed')
    for is_train, folder in ((True, train), (False, val)):
        expected, found = open_part(usual, is_train), open_part(path, is_train)
        assert found.class_names == ['cat', 'dog', 'emu']
        assert found.labels.tolist() == expected.labels.tolist()
        assert f'{folder}/cat/0.jpg' in found.describe_sample(0)
        assert all(np.array_equal(found.read(index), expected.read(index)) for index in (0, 11))
    if pack is str:
        assert find_root(f'{root}/{train}') == find_root(f'{root}/{val}') == root
    shutil.rmtree(f'{root}/{val}')
    with pytest.raises(UserError, match='no val folder'):
        open_part(root if pack is str else pack(root, tmp_path / 'again'), False)


@pytest.mark.parametrize('pack', [str, write_zip])
def test_a_folder_that_could_be_one_of_two_parts_and_classes_called_so(tmp_path, pack):
    make_folders(tmp_path / 'two', parts=('train', 'valid', 'Validation'))
    two = tmp_path / 'two' if pack is str else pack(tmp_path / 'two', tmp_path / 'two.zip')
    with pytest.raises(UserError, match='Validation and valid could both be the part "val"'):
        open_part(two)
    os.rename(tmp_path / 'two' / 'valid', tmp_path / 'two' / 'val')     # the usual name wins
    two = tmp_path / 'two' if pack is str else pack(tmp_path / 'two', tmp_path / 'three.zip')
    assert 'val/cat' in open_part(two, False).describe_sample(0)
    classes = make_folders(tmp_path / 'tickets', classes=('Valid', 'Invalid'), parts=('',))
    tickets = classes if pack is str else pack(classes, tmp_path / 'tickets.zip')
    assert open_part(tickets, DATA__VAL_FRACTION=0.25).class_names == ['Invalid', 'Valid']


@pytest.mark.parametrize('others', [(), ('val',), ('test',)])
def test_parts_without_class_folders_are_not_taken_for_classes(tmp_path, others):
    for part in ('train', *others):
        make_image(tmp_path / part / '0.jpg')
    with pytest.raises(UserError, match='no class folders|no val folder|is empty'):
        open_part(tmp_path)


def test_a_list_may_have_a_blank_after_the_comma(tmp_path):
    root = make_folders(tmp_path)
    text = ''.join(f'val/{name}/{n}.jpg, {label}\n' for label, name in
                   enumerate(('cat', 'dog', 'emu')) for n in range(4))
    make_lists(root, val=text, train=text.replace(', ', ' ,').replace('val/', 'train/'))
    for is_train in (True, False):
        dataset = build_files(make_config(DATA__DATA_PATH=root), is_train)
        dataset.check_files()
        assert len(dataset) == 12 and dataset.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_a_folder_with_nothing_in_it_lists_nothing(tmp_path):
    assert list_folder(str(tmp_path)) == ([], [], [])
    shutil.rmtree(tmp_path)
    with pytest.raises(UserError, match='No such file'):
        list_folder(str(tmp_path))
