"""What a folder of pictures holds: classes, parts, what is left out; nothing is in both parts."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from common.data.datasets import open_dataset
from common.data.digits import load_digits_rgb
from common.data.survey import (
    THUMB,
    compare_mirrored,
    count_reasons,
    survey_folder,
    write_table,
)
from common.errors import UserError
from tests.support.data_folders import make_config, make_folders, make_image
from tests.support.picture_folders import ODD, add_odd_files, make_digit_folders
from ViT.project import PROJECT

COUNTS = {0: 72, 1: 25, 6: 6}


@pytest.fixture
def folder(tmp_path):
    root = make_digit_folders(tmp_path / 'pictures', COUNTS)
    add_odd_files(os.path.join(root, 'zero'))
    return root


def test_classes_counts_and_what_is_left_out(folder):
    survey = survey_folder(folder, 0.2)
    assert survey.class_names == ['one', 'six', 'zero'] and survey.is_split
    assert survey.count(True).tolist() == [20, 5, 58]
    assert survey.count(False).tolist() == [5, 1, 14]
    assert survey.measure_sides() == (32, 32)
    reasons = {os.path.basename(path): reason for path, reason in survey.left_out}
    assert set(reasons) == {*ODD}
    assert 'empty' in reasons['empty.jpg'] and 'damaged' in reasons['cut.jpg']
    assert '.txt' in reasons['notes.txt'] and 'the same picture as zero' in reasons['again.png']
    assert sum(count_reasons(survey.left_out).values()) == 5


def test_class_folders_that_differ_in_blanks_are_two_classes(tmp_path):
    names = [' a', 'a', 'a ', 'line\nend', '#b']
    root = make_folders(tmp_path / 'pictures', classes=names, parts=('',))
    survey = survey_folder(root, 0.2)
    assert survey.class_names == sorted(names)
    write_table(survey, str(tmp_path / 'pictures.csv'))
    dataset = open_dataset(make_config(DATA__DATASET='csv', DATA__DATA_PATH=root,
                                       DATA__TABLE=str(tmp_path / 'pictures.csv')), True)
    for index, label in enumerate(dataset.labels.tolist()):
        folder = os.path.basename(os.path.dirname(dataset.reader.path(index)))
        assert os.fsdecode(folder) == survey.class_names[label]


def test_writing_looks_one_way_and_what_is_mirrored_as_often_does_not(folder, tmp_path):
    assert survey_folder(folder, 0.2).measure_mirroring() > 1.4
    both = make_digit_folders(tmp_path / 'both', COUNTS)
    for name in ('zero', 'one', 'six'):
        for file in os.listdir(os.path.join(both, name)):
            image = Image.open(os.path.join(both, name, file))
            image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).rotate(1).save(
                os.path.join(both, name, f'mirrored {file}'))
    assert survey_folder(both, 0.2).measure_mirroring() < 1.1


def test_how_unlike_the_mirror_images_are_by_a_sum_over_every_pair():
    images, labels = load_digits_rgb()
    thumbs = np.stack([Image.fromarray(image).convert('L').resize((THUMB, THUMB))
                       for image in images[labels == 7][:20]]).astype(np.float32)
    medians = []
    for looked_at in (thumbs, thumbs[:, :, ::-1]):
        nearest = []
        for i, one in enumerate(looked_at):
            others = [(other - other.mean()) / other.std() for j, other in enumerate(thumbs)
                      if j != i]
            one = (one - one.mean()) / one.std()
            nearest.append(min(np.linalg.norm(one - other) for other in others))
        medians.append(np.median(nearest))
    assert compare_mirrored(thumbs.reshape(20, -1)) == pytest.approx(medians[1] / medians[0], 1e-3)


def test_the_same_pictures_are_held_back_whenever_it_is_asked_again(folder, tmp_path):
    first = survey_folder(folder, 0.2)
    shutil.copytree(folder, tmp_path / 'elsewhere')
    assert survey_folder(tmp_path / 'elsewhere', 0.2).pictures == first.pictures
    assert survey_folder(folder, 0.5).pictures != first.pictures


def test_nothing_is_in_both_parts_whatever_lies_where(tmp_path):
    """A picture of val/ that lies in train/ too, under another name, is not learnt from."""
    root = make_folders(tmp_path, per_class=5)
    shutil.copy(os.path.join(root, 'val/cat/0.jpg'), os.path.join(root, 'train/cat/other.jpg'))
    survey = survey_folder(root, 0.2)
    assert not survey.is_split
    assert [(path, reason) for path, reason in survey.left_out] == [
        ('train/cat/other.jpg', 'the same picture as val/cat/0.jpg')]
    assert survey.count(True).tolist() == survey.count(False).tolist() == [5, 5, 5]


@pytest.mark.parametrize('train, val', [('train', 'val'), ('train', 'validation'),
                                        ('Train', 'Valid'), ('training', 'VAL')])
def test_parts_by_their_usual_names(train, val, tmp_path):
    make_digit_folders(tmp_path, {0: 6, 1: 6}, part=train)
    make_digit_folders(tmp_path, {0: 4, 1: 4}, skip=6, part=val)
    survey = survey_folder(tmp_path, 0.2)
    assert not survey.is_split and survey.class_names == ['one', 'zero']
    assert survey.count(True).tolist() == [6, 6] and survey.count(False).tolist() == [4, 4]


def test_what_is_not_used_beside_the_parts_is_said(tmp_path, caplog):
    make_digit_folders(tmp_path, {0: 6, 1: 6}, part='Training')
    make_digit_folders(tmp_path, {0: 4, 1: 4}, skip=6, part='Testing')
    make_image(tmp_path / 'plan.png')
    make_image(tmp_path / 'Training' / 'loose.png')
    survey = survey_folder(tmp_path, 0.2)
    assert survey.is_split and survey.count(True).sum() + survey.count(False).sum() == 12
    assert 'Not used: Testing beside Training' in caplog.text
    assert survey.left_out == [('plan.png', 'in no class folder'),
                               ('Training/loose.png', 'in no class folder')]


def test_classes_of_validation_that_are_not_learnt_are_refused(tmp_path):
    make_digit_folders(tmp_path, {0: 6, 1: 6}, part='train')
    make_digit_folders(tmp_path, {0: 4, 1: 4}, skip=6, part='val')
    os.rename(tmp_path / 'val' / 'one', tmp_path / 'val' / 'One')
    with pytest.raises(UserError, match='train has no picture .* of One, and the other part has'):
        survey_folder(tmp_path, 0.2)
    shutil.rmtree(tmp_path / 'val')
    make_image(tmp_path / 'val' / '1.jpg')
    with pytest.raises(UserError, match='val has pictures but no class folders'):
        survey_folder(tmp_path, 0.2)


def test_one_picture_of_a_class_is_learnt_from(tmp_path):
    root = make_digit_folders(tmp_path, {0: 10, 1: 10, 2: 1})
    survey = survey_folder(root, 0.2)
    assert survey.count(True).tolist() == [8, 1, 8] and survey.count(False).tolist() == [2, 0, 2]


def test_the_table_gives_the_same_parts_to_a_run(folder, tmp_path):
    survey = survey_folder(folder, 0.2)
    write_table(survey, tmp_path / 'pictures.csv')
    (tmp_path / 'labels.txt').write_text(''.join(f'{name}\n' for name in survey.class_names))
    config = make_config(DATA__DATASET='csv', DATA__DATA_PATH=folder,
                         DATA__TABLE=str(tmp_path / 'pictures.csv'), MODEL__NUM_CLASSES=3,
                         DATA__LABELS=str(tmp_path / 'labels.txt'))
    for is_train in (True, False):
        dataset = PROJECT.get_dataset(config, is_train)
        assert dataset.class_names == survey.class_names
        assert np.bincount(dataset.labels).tolist() == survey.count(is_train).tolist()
        for index in range(len(dataset)):
            assert f'/{dataset.class_names[dataset.labels[index]]}/' \
                in dataset.describe_sample(index)


def test_folders_without_classes_are_refused_with_reasons(tmp_path):
    def refuse(path, text):
        with pytest.raises(UserError, match=text):
            survey_folder(path, 0.2)

    refuse(tmp_path / 'nowhere', 'No such folder')
    refuse(tmp_path, 'no class folders')
    make_image(tmp_path / 'a.jpg')
    refuse(tmp_path, 'no class folders, so their classes are unknown')
    refuse(tmp_path / 'a.jpg', 'a.jpg is a file, not a folder of pictures')
    (tmp_path / 'pics.zip').write_bytes(b'')
    refuse(tmp_path / 'pics.zip', 'pics.zip is an archive: unpack it first')
    make_image(tmp_path / 'cat' / 'a.jpg')
    os.mkdir(tmp_path / 'dog')
    (tmp_path / 'dog' / 'notes.txt').write_text('')
    refuse(tmp_path, r'1 class folder \(cat\); a classifier needs two.*notes.txt')


def test_one_folder_of_class_folders_is_pointed_at(tmp_path):
    make_folders(tmp_path / 'deep' / 'outer', classes=('bag', 'dress'), parts=('',))
    os.mkdir(tmp_path / 'deep' / 'empty')
    with pytest.raises(UserError, match=r'outer holds 2 folders .*dress\): did you mean .*outer'):
        survey_folder(tmp_path / 'deep', 0.2)
    with pytest.raises(UserError, match=r'did you mean .*deep/outer\?'):
        survey_folder(tmp_path, 0.2)
    assert survey_folder(tmp_path / 'deep' / 'outer', 0.2).class_names == ['bag', 'dress']
    make_folders(tmp_path / 'split' / 'train' / 'outer', classes=('bag', 'dress'), parts=('',))
    with pytest.raises(UserError, match='would be the only class. Move these up into .*train'):
        survey_folder(tmp_path / 'split', 0.2)


def test_class_folders_of_folders_are_classes_and_a_warning(tmp_path, caplog):
    for seed, folder in enumerate(('cats/persian', 'cats/manx', 'dogs/collie', 'dogs/poodle')):
        make_image(tmp_path / folder / '1.jpg', seed=seed)
    assert survey_folder(tmp_path, 0.2).class_names == ['cats', 'dogs']
    assert 'The classes are the outer folders (cats, dogs)' in caplog.text
    caplog.clear()
    make_image(tmp_path / 'dogs' / 'own.png', seed=99)
    assert survey_folder(tmp_path, 0.2).class_names == ['cats', 'dogs'] and not caplog.text


def test_class_folders_that_are_called_like_parts_are_refused(tmp_path):
    names = [f'seg_{part}/seg_{part}/{name}' for part in ('train', 'test') for name in ('a', 'b')]
    for seed, folder in enumerate([*names, 'seg_pred/seg_pred']):
        make_image(tmp_path / folder / '1.jpg', seed=seed)
    with pytest.raises(UserError, match=r'seg_test, seg_train hold .*mean .*seg_train/seg_train\?'):
        survey_folder(tmp_path, 0.2)
    assert survey_folder(tmp_path / 'seg_train' / 'seg_train', 0.2).class_names == ['a', 'b']
    for seed, folder in enumerate(('train_station/old', 'train_station/new', 'airport')):
        make_image(tmp_path / 'places' / folder / '1.jpg', seed=seed)
    assert survey_folder(tmp_path / 'places', 0.2).class_names == ['airport', 'train_station']


def test_of_a_copy_the_name_of_the_original_is_kept(tmp_path):
    root = make_digit_folders(tmp_path, {0: 4, 1: 4})
    names = ['IMG_1000.jpg', 'IMG_1000 (1).jpg', 'IMG_1000 (2).jpg', 'IMG_1000 (10).jpg']
    for name in names:
        shutil.copy(f'{root}/zero/0.png', f'{root}/zero/{name}')
    os.remove(f'{root}/zero/0.png')
    survey = survey_folder(root, 0.2)
    assert {path for path, _ in survey.left_out} == {f'zero/{name}' for name in names[1:]}
    paths = [picture.path for picture in survey.pictures]
    assert 'zero/IMG_1000.jpg' in paths and paths == sorted(paths)


def test_files_of_other_kinds_are_one_reason_with_a_remedy(monkeypatch):
    monkeypatch.setattr('common.data.images.list_extensions', lambda: ('.jpg',))
    left_out = [(f'a/x{ending}', f'no ending of a picture that is read here ({ending})')
                for ending in ('.db', '.heic')]
    left_out += [('a/b.jpg', 'the same picture as a/a.jpg'), ('a/c.jpg', 'the file is empty.')]
    assert count_reasons(left_out) == {
        'of other kinds (.db, .heic); .heic can be read with pillow-heif: pip install pillow-heif':
        2, 'the same picture': 1, 'the file is empty': 1}
