"""Data sets: digits, list files and folders; every wrong input; memory of long lists."""

import os
import random
import shutil
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from common.data.datasets import DATASETS, build_dataset
from common.data.digits import load_digits, load_digits_rgb
from common.data.images import ImageError, read_image
from common.data.lists import read_list, write_list
from common.data.pixels import to_array
from common.data.transforms import build_eval_transform, build_train_transform
from common.errors import UserError
from tests.support.data_folders import make_config, make_folders, make_image, make_lists
from tests.support.paths import ROOT


def build(config, is_train):
    transform = build_train_transform(config) if is_train else build_eval_transform(config)
    return build_dataset(config, is_train, transform)


def build_at(path, is_train=False, **options):
    return build(make_config(DATA__DATA_PATH=str(path), **options), is_train)


def paths_of(dataset):
    return [os.fsdecode(name) for name in dataset.reader.table.iterate_names()]


# Digits

def test_digits_are_the_published_ones():
    images, labels = load_digits()
    assert images.shape == (1797, 8, 8) and images.dtype == np.uint8 and images.max() == 16
    assert labels.dtype == np.int64
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert labels[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert images[0, 0].tolist() == [0, 0, 5, 13, 9, 1, 0, 0]
    assert int(images.sum(dtype=np.int64)) == 561718
    rgb, _ = load_digits_rgb()
    assert rgb.shape == (1797, 8, 8, 3) and rgb.max() == 255
    assert np.array_equal(rgb[..., 1], np.rint(images.astype(int) * 255 / 16))


def test_digits_file_is_small_and_credited():
    folder = os.path.join(ROOT, 'common', 'data', 'assets')
    assert os.path.getsize(os.path.join(folder, 'digits.npz')) < 100_000
    with open(os.path.join(folder, 'README.md'), encoding='utf-8') as file:
        text = file.read()
    assert 'CC BY 4.0' in text and 'Alpaydin' in text


def test_digits_split_is_a_quarter_disjoint_and_the_same_for_every_seed():
    parts = [build(make_config(DATA__DATASET='digits', SEED=seed), is_train)
             for seed in (0, 1) for is_train in (True, False)]
    train, val = parts[:2]
    assert len(train) + len(val) == 1797 and abs(len(val) / 1797 - 0.25) < 0.002
    assert np.array_equal(train.images, parts[2].images)
    assert np.array_equal(val.labels, parts[3].labels)
    images, _ = load_digits_rgb()
    together = np.concatenate([train.images, val.images]).reshape(1797, -1)
    assert sorted(map(bytes, together)) == sorted(map(bytes, images.reshape(1797, -1)))
    assert train.class_names == [str(digit) for digit in range(10)]
    assert np.bincount(val.labels).min() >= 43


def test_digits_sample():
    config = make_config(DATA__DATASET='digits', DATA__CROP_PCT=1.0, DATA__INTERPOLATION='nearest')
    val = build(config, False)
    array, label, index = val[0, 7]
    assert array.shape == (32, 32, 3) and array.dtype == np.uint8
    assert np.array_equal(array, val.images[7].repeat(4, 0).repeat(4, 1))
    assert (label, index) == (val.labels[7], 7)


# Samples

def test_a_sample_depends_on_seed_epoch_and_index_alone(tmp_path):
    path = make_folders(tmp_path)
    train = build_at(path, True)
    again = build_at(path, True)
    order = [(epoch, index) for epoch in range(2) for index in range(12)]
    expected = {key: train[key][0] for key in order}
    random.Random(0).shuffle(order)
    np.random.seed(5)
    assert all(np.array_equal(again[key][0], expected[key]) for key in order)
    other_seed = build_at(path, True, SEED=1)
    assert not np.array_equal(train[0, 3][0], train[1, 3][0])
    assert not np.array_equal(train[0, 3][0], other_seed[0, 3][0])


def test_evaluation_ignores_epoch_and_seed(tmp_path):
    path = make_folders(tmp_path)
    expected = build_at(path)[0, 5][0]
    assert np.array_equal(build_at(path, SEED=9)[7, 5][0], expected)
    image = read_image(os.path.join(path, 'val', 'dog', '1.jpg'))
    assert np.array_equal(to_array(build_eval_transform(make_config())(image, None)), expected)


# Folders

def test_folders_give_classes_in_sorted_order(tmp_path):
    path = make_folders(tmp_path)
    for hidden in ('.ipynb_checkpoints', '.git'):
        make_image(os.path.join(path, 'train', hidden, 'x.jpg'))
    make_image(os.path.join(path, 'train', 'dog', 'deeper', 'x.PNG'))
    (tmp_path / 'train' / 'dog' / '._0.jpg').write_text('resource fork')
    (tmp_path / 'train' / 'dog' / 'notes.txt').write_text('text')
    train = build_at(path, True)
    assert train.class_names == ['cat', 'dog', 'emu'] and train.num_classes == 3
    assert paths_of(train) == (
        [f'train/cat/{n}.jpg' for n in range(4)] + [f'train/dog/{n}.jpg' for n in range(4)]
        + ['train/dog/deeper/x.PNG'] + [f'train/emu/{n}.jpg' for n in range(4)])
    assert train.labels.tolist() == [0] * 4 + [1] * 5 + [2] * 4
    assert '13 training images, 3 classes' in train.describe()


@pytest.mark.parametrize('name', DATASETS)
def test_every_data_set_needs_a_path_that_exists(name, tmp_path):
    if name == 'digits':
        return
    with pytest.raises(UserError, match='No such'):
        build_at(tmp_path / 'none', DATA__DATASET=name)


@pytest.mark.parametrize('part', ['', 'train', 'val', 'val/'])
def test_path_may_be_root_or_part(tmp_path, part):
    make_folders(tmp_path)
    assert len(build_at(f'{tmp_path}/{part}', True)) == 12
    assert paths_of(build_at(f'{tmp_path}/{part}'))[0] == 'val/cat/0.jpg'
    make_lists(tmp_path, train='train/dog/1.jpg 3', val='val/dog/2.jpg 3')
    assert build_at(f'{tmp_path}/{part}', True).labels.tolist() == [3]


def test_odd_names(tmp_path):
    names = ['a b.jpg', 'ünï.jpg', 'new\nline.jpg', '日本.png', '#1.jpg']
    for name in names:
        make_image(str(tmp_path / 'val' / 'class with space' / name))
    val = build_at(tmp_path)
    assert val.class_names == ['class with space'] and len(val) == 5
    assert {val[0, i][0].shape for i in range(5)} == {(32, 32, 3)}
    for i in range(5):
        assert val.describe_sample(i).isprintable()


def test_one_folder_is_split_reproducibly(tmp_path):
    path = make_folders(tmp_path, per_class=10, parts=('',))
    parts = [build_at(path, is_train, DATA__VAL_FRACTION=0.2, SEED=seed)
             for seed in (0, 1) for is_train in (True, False)]
    assert paths_of(parts[0]) == paths_of(parts[2]) and paths_of(parts[1]) == paths_of(parts[3])
    train, val = set(paths_of(parts[0])), set(paths_of(parts[1]))
    assert not train & val and len(train | val) == 30
    assert np.bincount(parts[1].labels).tolist() == [2, 2, 2]
    assert parts[0].class_names == parts[1].class_names == ['cat', 'dog', 'emu']
    # Another picture moves at most one other to the other side.
    make_image(os.path.join(path, 'dog', 'new.jpg'))
    moved = set(paths_of(build_at(path, False, DATA__VAL_FRACTION=0.2))) ^ val
    assert len(moved) <= 2


def test_train_folder_is_split_where_there_is_no_val(tmp_path):
    path = make_folders(tmp_path, per_class=5, parts=('train',))
    assert len(build_at(path, True, DATA__VAL_FRACTION=0.1)) == 12     # one of each class is kept
    assert len(build_at(path, False, DATA__VAL_FRACTION=0.1)) == 3
    assert len(build_at(path, True)) == 15
    with pytest.raises(UserError, match=r'no val folder.*DATA\.VAL_FRACTION'):
        build_at(path)


def test_only_val_is_enough_to_evaluate(tmp_path):
    path = make_folders(tmp_path, parts=('val',))
    assert len(build_at(path)) == 12
    with pytest.raises(UserError, match='no train folder'):
        build_at(path, True)


@pytest.mark.parametrize('is_train', [True, False])
def test_different_classes_in_train_and_val(tmp_path, is_train):
    path = make_folders(tmp_path)
    os.rename(os.path.join(path, 'val', 'dog'), os.path.join(path, 'val', 'dgo'))
    with pytest.raises(UserError, match='only in train: dog, only in val: dgo'):
        build_at(path, is_train)


def test_unsorted_val_folder(tmp_path):
    path = make_folders(tmp_path, parts=('train',))
    make_image(os.path.join(path, 'val', 'ILSVRC2012_val_00000001.JPEG'))
    for is_train in (True, False):
        with pytest.raises(UserError, match=r'val has images but no class folders.*val_list\.txt'):
            build_at(path, is_train)
    shutil.rmtree(os.path.join(path, 'train'))
    with pytest.raises(UserError, match='no class folders'):
        build_at(path)


def test_empty_data_sets(tmp_path):
    with pytest.raises(UserError, match='is empty'):
        build_at(tmp_path, True)
    (tmp_path / 'train' / 'cat').mkdir(parents=True)
    with pytest.raises(UserError, match='holds no image'):
        build_at(tmp_path, True)
    make_lists(tmp_path, train='# nothing\n\n', val='')
    for is_train in (True, False):
        with pytest.raises(UserError, match='lists no image'):
            build_at(tmp_path, is_train)


def test_more_classes_than_the_model(tmp_path):
    path = make_folders(tmp_path)
    with pytest.raises(UserError, match=r'3 classes.*more than the model has, 2.*-num_classes=3'):
        build_at(path, MODEL__NUM_CLASSES=2)


def test_unknown_data_set_and_missing_path():
    with pytest.raises(UserError, match='Did you mean imagenet2012'):
        build(make_config(DATA__DATASET='imagenet2021'), True)
    with pytest.raises(UserError, match='-data_path=DIR'):
        build(make_config(), True)


# Lists

@pytest.mark.parametrize('text', [
    'val/cat/0.jpg 1\nval/a b/c.jpg 0\n',
    '\ufeffval/cat/0.jpg 1\r\nval/a b/c.jpg 0\r\n',
    '# two images\n\nval/cat/0.jpg\t1\n  \nval/a b/c.jpg \t 0  ',
    'val/cat/0.jpg,1\nval/a b/c.jpg,0',
    'val\\cat\\0.jpg 1\r\nval\\a b\\c.jpg 0\r\n',
])
def test_list_forms(tmp_path, text):
    make_image(str(tmp_path / 'val' / 'a b' / 'c.jpg'))
    make_image(str(tmp_path / 'val' / 'cat' / '0.jpg'))
    val = build_at(make_lists(tmp_path, val=text), DATA__DATASET='imagenet2012')
    assert paths_of(val) == ['val/cat/0.jpg', 'val/a b/c.jpg'] and val.labels.tolist() == [1, 0]
    assert val[0, 1][1:] == (0, 1)


def test_blanks_that_belong_to_a_listed_name_are_kept(tmp_path):
    for name in ('val/a.jpg', ' b/0.jpg', '#c.jpg'):
        make_image(str(tmp_path / name))
    text = '  val/a.jpg 0\n b/0.jpg 1\n./#c.jpg 2\n'
    assert paths_of(build_at(make_lists(tmp_path, val=text))) == ['val/a.jpg', ' b/0.jpg',
                                                                  './#c.jpg']
    make_image(str(tmp_path / 'b/0.jpg'))
    with pytest.raises(UserError, match=r"val_list\.txt, line 2: there are both ' b/0.jpg' and"):
        build_at(str(tmp_path))


def test_a_line_without_end_is_refused(tmp_path):
    make_folders(tmp_path)
    with open(tmp_path / 'val_list.txt', 'wb') as file:
        file.write(b'val/cat/0.jpg 0\nv')
        file.truncate(40 << 30)
    with pytest.raises(UserError, match=r'val_list\.txt, line 2: more than 65,536 bytes'):
        build_at(str(tmp_path))


def test_list_with_absolute_path_and_any_name(tmp_path):
    elsewhere = str(tmp_path / 'elsewhere' / 'ü 1,2 .jpg')
    make_image(elsewhere)
    (tmp_path / 'data').mkdir()
    val = build_at(make_lists(tmp_path / 'data', val=f'{elsewhere} 4'))
    assert val[0, 0][1] == 4 and val.describe_sample(0) == elsewhere


@pytest.mark.parametrize('line, message', [
    ('val/cat/0.jpg', 'expected "path label"'),
    ('val/cat/0.jpg cat', "must be an integer from 0, not 'cat'"),
    ('val/cat/0.jpg -1', "must be an integer from 0, not '-1'"),
    ('val/cat/0.jpg 1.0', "must be an integer from 0, not '1.0'"),
    ('val/cat/0.jpg 99999999999', 'must be an integer'),
    ('val/cat/0.jpg 10', r'label 10 is outside the 10 classes \(0 to 9\)'),
    ('val/cat/none.jpg 1', 'no such image file: .*none.jpg'),
    ('v\0a\0l\0 1', 'not plain text'),
])
def test_wrong_line_is_named_by_its_number(tmp_path, line, message):
    path = make_folders(tmp_path)
    make_lists(path, val=f'# header\nval/cat/0.jpg 1\n\n{line}\nval/cat/1.jpg 1\n')
    with pytest.raises(UserError, match=rf'val_list\.txt, line 4: .*{message}'):
        build_at(path, MODEL__NUM_CLASSES=10)


def test_missing_list_is_not_replaced_by_folder_order(tmp_path):
    path = make_lists(make_folders(tmp_path), train='train/cat/0.jpg 7')
    with pytest.raises(UserError, match=r'no .*val_list\.txt, although there is .*train_list\.txt'):
        build_at(path)


def test_unreadable_list(tmp_path):
    os.mkdir(os.path.join(make_folders(tmp_path), 'val_list.txt'))
    with pytest.raises(UserError, match=r'Cannot read the list file .*val_list\.txt'):
        build_at(tmp_path)


def test_image_that_vanished_is_named_with_its_line(tmp_path):
    lines = ''.join(f'val/{name}/{n}.jpg 0\n' for name in ('cat', 'dog') for n in range(4))
    val = build_at(make_lists(make_folders(tmp_path), val=lines))
    os.remove(tmp_path / 'val' / 'dog' / '2.jpg')
    with pytest.raises(ImageError, match=r'dog/2\.jpg: no such image.*val_list\.txt, line 7'):
        val[0, 6]


def test_list_that_is_longer_than_what_is_looked_at_first(tmp_path):
    make_image(str(tmp_path / 'a.jpg'))
    lines = ['a.jpg 0'] * 1000
    lines[-1] = 'b.jpg 0'
    with pytest.raises(UserError, match='line 1000: no such image'):
        build_at(make_lists(tmp_path, val='\n'.join(lines)))


def test_class_names_from_a_file(tmp_path):
    path = make_lists(make_folders(tmp_path), val='val/cat/0.jpg 1')
    names = tmp_path / 'names.txt'
    names.write_text('\ufefftench\nwhite shark\n', encoding='utf-8')
    val = build_at(path, DATA__LABELS=str(names))
    assert val.class_names == ['tench', 'white shark']
    names.write_text('tench\n')
    with pytest.raises(UserError, match=r'names\.txt names 1 classes.* 2 '):
        build_at(path, DATA__LABELS=str(names))
    with pytest.raises(UserError, match='Cannot read the labels'):
        build_at(path, DATA__LABELS=str(tmp_path / 'none.txt'))


def test_lists_take_little_memory(tmp_path):
    count = 50_000
    with open(tmp_path / 'list.txt', 'w', encoding='utf-8') as file:
        for n in range(count):
            file.write(f'train/n{n // 1300:08}/n{n // 1300:08}_{n:06}.JPEG {n % 1000}\n')
    tracemalloc.start()
    table = read_list(str(tmp_path / 'list.txt'), str(tmp_path), 1000).table
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(table) == count
    assert table.name(43_456) == b'train/n00000033/n00000033_043456.JPEG'
    assert table.labels[43_456] == 456 and table.nbytes / count < 60
    assert held / count < 70 and peak / count < 100


def test_written_list_reads_back(tmp_path):
    path = make_folders(tmp_path, classes=('a b', 'ü'))
    train = build_at(path, True)
    write_list(train.reader.table, os.path.join(path, 'train_list.txt'))
    again = build_at(path, True)
    assert again.reader.listing.endswith('train_list.txt')
    assert paths_of(again) == paths_of(train) and again.labels.tolist() == train.labels.tolist()
    make_image(str(tmp_path / 'train' / 'ü' / 'new\nline.jpg'))
    os.remove(tmp_path / 'train_list.txt')
    with pytest.raises(UserError, match='cannot hold this name'):
        write_list(build_at(path, True).reader.table, os.path.join(path, 'train_list.txt'))
    assert not [name for name in os.listdir(path) if 'list' in name]


# Unreadable images

def test_unreadable_image_stops_or_is_skipped(tmp_path):
    path = make_folders(tmp_path)
    bad = os.path.join(path, 'train', 'dog', '1.jpg')
    os.truncate(bad, 100)
    with pytest.raises(ImageError, match='dog/1.jpg'):
        build_at(path, True)[0, 5]
    train = build_at(path, True, DATA__SKIP_CORRUPT=True)
    array, label, index = train[0, 5]
    assert (label, index) == (1, 6) and array.shape == (32, 32, 3)
    assert np.array_equal(array, train[0, 5][0])
    os.truncate(bad.replace('train', 'val'), 100)
    with pytest.raises(ImageError, match='dog/1.jpg'):      # never when evaluating
        build_at(path, False, DATA__SKIP_CORRUPT=True)[0, 5]


def test_skipping_gives_up_when_everything_is_unreadable(tmp_path):
    path = make_folders(tmp_path)
    train = build_at(path, True, DATA__SKIP_CORRUPT=True)
    shutil.rmtree(os.path.join(path, 'train'))
    with pytest.raises(ImageError, match='unreadable images in a row'):
        train[0, 0]


def test_giant_after_resize_is_named(tmp_path):
    os.makedirs(tmp_path / 'val' / 'a')
    Image.new('RGB', (1, 30_000)).save(tmp_path / 'val' / 'a' / 'thin.png')
    val = build_at(tmp_path, DATA__IMAGE_SIZE=224)
    with pytest.raises(ImageError, match=r'thin\.png: 256 x 7680000 pixels are too many'):
        val[0, 0]
