"""Tables of paths and labels: every form, splits, and every wrong input named by its line."""

import os

import numpy as np
import pytest

from common.data.csv_table import read_table
from common.data.datasets import build_dataset
from common.data.images import ImageError
from common.data.transforms import build_eval_transform
from common.errors import UserError
from tests.support.data_folders import make_config, make_folders, make_image, make_lists


def build(path, is_train=True, **options):
    config = make_config(**{'DATA__DATASET': 'csv', 'DATA__DATA_PATH': str(path), **options})
    return build_dataset(config, is_train, build_eval_transform(config))


def write(path, text, encoding='utf-8'):
    with open(path, 'w', encoding=encoding, newline='') as file:
        file.write(text)
    return path


def names_of(dataset):
    return [os.fsdecode(name) for name in dataset.reader.table.iterate_names()]


ROWS = [('a/0.jpg', 1), ('a/1, x.jpg', 0)]


@pytest.mark.parametrize('text', [
    'a/0.jpg,1\n"a/1, x.jpg",0\n',
    '\ufeffpath,label\r\na/0.jpg,1\r\n"a/1, x.jpg",0\r\n',
    'Label;Path\n1;a/0.jpg\n0;"a/1, x.jpg"\n',
    'id\tfilename\tclass\n7\ta/0.jpg\t1\n\n8\ta/1, x.jpg\t0',
    '\n  image , target\n a/0.jpg , 1 \n"a/1, x.jpg",0\n , \n',
    'photo,species\na/0.jpg,1\n"a/1, x.jpg",0\n',
    'path,label\na\\0.jpg,1\n"a\\1, x.jpg",0\n',
])
def test_forms_of_a_table(tmp_path, text):
    for name, _ in ROWS:
        make_image(str(tmp_path / name))
    train = build(write(tmp_path / 'x.csv', text))
    assert names_of(train) == [name for name, _ in ROWS]
    assert train.labels.tolist() == [label for _, label in ROWS] and train.class_names is None
    assert train[0, 1][1:] == (0, 1)


def test_blanks_that_belong_to_a_path_are_kept(tmp_path):
    for name in ('a/0.jpg', ' b/0.jpg'):
        make_image(str(tmp_path / name))
    text = 'path,label\n a/0.jpg,0\n b/0.jpg,1\n'
    assert names_of(build(write(tmp_path / 'x.csv', text))) == ['a/0.jpg', ' b/0.jpg']
    make_image(str(tmp_path / ' a/0.jpg'))
    with pytest.raises(UserError, match=r"x\.csv, line 2: there are both ' a/0.jpg' and 'a/0.jpg'"):
        build(tmp_path / 'x.csv')
    write(tmp_path / 'x.csv', text.replace(' a', './ a'))
    assert names_of(build(tmp_path / 'x.csv')) == ['./ a/0.jpg', ' b/0.jpg']


def test_labels_that_differ_in_blanks_are_one_class_and_said(tmp_path, caplog):
    make_image(str(tmp_path / 'a.jpg'))
    rows = ['a.jpg, cat', 'a.jpg, dog', 'a.jpg, cat']
    path = write(tmp_path / 'x.csv', '\n'.join(rows) + '\n')
    with caplog.at_level('WARNING', logger='common'):
        assert build(path).labels.tolist() == [0, 1, 0] and not caplog.messages
        write(path, '\n'.join([*rows, 'a.jpg,cat', 'a.jpg,cat']) + '\n')
        assert build(path).labels.tolist() == [0, 1, 0, 0, 0]
    message, = caplog.messages
    assert "x.csv, line 4: the label 'cat' is the same class as 'cat' at" in message


def test_a_table_without_line_ends_is_refused(tmp_path):
    path = write(tmp_path / 'x.csv', 'path,label\n' + 'a.jpg,1\n' * 10_000)
    os.truncate(path, 40 << 30)
    with pytest.raises(UserError, match=r'x\.csv, line 10002: more than 1,048,576 letters'):
        build(path)


def test_columns_by_name(tmp_path):
    make_image(str(tmp_path / 'a.jpg'))
    path = write(tmp_path / 'x.csv', 'where,what,when,label\na.jpg,dog,train,7\na.jpg,cat,val,7\n')
    options = {'DATA__IMAGE_COLUMN': 'where', 'DATA__LABEL_COLUMN': 'what',
               'DATA__SPLIT_COLUMN': 'when'}
    assert build(path, **options).labels.tolist() == [1]
    with pytest.raises(UserError, match=r"no column 'whta' \(DATA.LABEL_COLUMN\).*mean what"):
        build(path, **{**options, 'DATA__LABEL_COLUMN': 'whta'})
    with pytest.raises(UserError, match='which column is the image.*DATA.IMAGE_COLUMN.*where, '):
        build(path)


def test_text_labels_are_classes_in_sorted_order(tmp_path):
    make_image(str(tmp_path / 'a.jpg'))
    path = write(tmp_path / 'x.csv', 'path,label,split\na.jpg,dog,train\na.jpg,Ünï,Training\n'
                 'a.jpg,cat,train\na.jpg,dog,validation\na.jpg,emu,test\n')
    train, val = build(path), build(path, False)
    assert train.class_names == val.class_names == ['cat', 'dog', 'emu', 'Ünï']
    assert train.labels.tolist() == [1, 3, 0] and val.labels.tolist() == [1]
    assert '3 training images, 4 classes' in train.describe()


def test_train_and_val_tables(tmp_path):
    make_image(str(tmp_path / 'a.jpg'))
    write(tmp_path / 'train.csv', 'a.jpg,dog\na.jpg,cat\na.jpg,emu\n')
    write(tmp_path / 'val.csv', 'a.jpg,emu\n')
    assert build(tmp_path).labels.tolist() == [1, 0, 2]
    assert build(tmp_path, False).labels.tolist() == [2]
    assert build(tmp_path, False).class_names == ['cat', 'dog', 'emu']
    other = write(tmp_path / 'other.csv', 'a.jpg,dog\n')
    assert build(tmp_path / 'train.csv', False, DATA__VAL_PATH=str(other)).labels.tolist() == [1]
    assert build(tmp_path / 'train.csv', False, DATA__VAL_PATH='other.csv').labels.tolist() == [1]
    write(other, 'a.jpg,fox\n')
    with pytest.raises(UserError, match='no training image: fox'):
        build(tmp_path / 'train.csv', True, DATA__VAL_PATH=str(other))
    write(other, 'a.jpg,1\n')
    with pytest.raises(UserError, match='one part are integers'):
        build(tmp_path / 'train.csv', True, DATA__VAL_PATH=str(other))


def test_paths_relative_to_the_data_path(tmp_path):
    make_image(str(tmp_path / 'pictures' / 'a.jpg'))
    table = write(tmp_path / 'x.csv', f'a.jpg,1\n{tmp_path}/pictures/a.jpg,0\n')
    train = build(tmp_path / 'pictures', DATA__TABLE=str(table))
    assert train[0, 0][1] == 1 and train[0, 1][1] == 0


def test_split_by_fraction_is_the_same_for_tables_and_lists(tmp_path):
    root = make_folders(tmp_path, parts=('train',), per_class=10)
    rows = [(f'train/{name}/{number}.jpg', label) for label, name in
            enumerate(('cat', 'dog', 'emu')) for number in range(10)]
    table = write(tmp_path / 'x.csv', ''.join(f'{path},{label}\n' for path, label in rows))
    folders = [names_of(build(root, is_train, DATA__DATASET='imagefolder', DATA__VAL_FRACTION=0.2))
               for is_train in (True, False)]
    make_lists(root, train=''.join(f'{path} {label}\n' for path, label in rows))
    for dataset, path in (('csv', table), ('imagefolder', root)):
        parts = [build(path, is_train, DATA__DATASET=dataset, DATA__VAL_FRACTION=0.2)
                 for is_train in (True, False)]
        assert [names_of(part) for part in parts] == folders
        assert [part.is_split for part in parts] == [True, True]
        os.remove(tmp_path / 'train' / 'cat' / '0.jpg')
        part = parts['train/cat/0.jpg' not in folders[0]]
        index = names_of(part).index('train/cat/0.jpg')
        with pytest.raises(ImageError, match=r'cat/0\.jpg: no such image file.*, line 1\)'):
            part.read(index)
        make_image(str(tmp_path / 'train' / 'cat' / '0.jpg'))
    with pytest.raises(UserError, match=r'no validation data.*DATA\.VAL_FRACTION'):
        build(table, False)
    assert len(build(table, False, EVAL=True)) == 30


@pytest.mark.parametrize('text, message', [
    ('', 'lists no image'),
    ('path,label\n', 'lists no image'),
    ('a.jpg,0\nx\\b.jpg,0\n', r'line 2: no such image file: .*x\\b\.jpg'),
    ('image,split\na.jpg,train\n', 'which column is the label'),
    ('photo,copy\na.jpg,a.jpg\n', 'which column is the image'),
    ('photo,id,label\na.jpg,1,0\n', 'which column is the image'),
    ('a.jpg,0\na.jpg\n', 'line 2: 1 cells, expected 2'),
    ('a.jpg,0\na.jpg,-1\n', "line 2: the label must be an integer from 0, or text, not '-1'"),
    ('a.jpg,0\n\na.jpg,1.5\n', "line 3: .*not '1.5'"),
    ('a.jpg,0\na.jpg,99999999999\n', 'line 2: the label must be'),
    ('a.jpg,0\na.jpg,1000\n', r'line 2: label 1000 is outside the 1000 classes \(0 to 999\)'),
    ('a.jpg,0\n"a\nb.jpg",0\nc.jpg,0\n', r'line 3: no such image file: .*a\\nb\.jpg'),
    ('a.jpg,0\nb.jpg,0\n', r'line 2: no such image file: .*b\.jpg.*relative to'),
    ('a.jpg,cat\na.jpg,\n', 'line 2: the label is empty'),
    ('a.jpg,cat\n,cat\n', 'line 2: the path is empty'),
    ('a.jpg,0,train\na.jpg,0,tarin\n', "line 2: unknown split 'tarin'. Did you mean train"),
    ('a.jpg,0,train,x\n', '4 columns and no header'),
    ('a.jpg\n', '1 columns and no header'),
    ('p\0a,0\n', 'not plain text'),
    ('a.jpg,"0\n', 'line 1: '),
    ('a.jpg,0\n' + 'x' * 200_000 + ',0\n', 'line 2: field larger'),
])
def test_wrong_tables_are_named_with_their_line(tmp_path, text, message):
    make_image(str(tmp_path / 'a.jpg'))
    with pytest.raises(UserError, match=rf'(?s)x\.csv.*{message}') as error:
        build(write(tmp_path / 'x.csv', text))
    assert str(error.value).isprintable()


def test_tables_that_are_not_there(tmp_path):
    with pytest.raises(UserError, match='csv needs its table'):
        build('')
    with pytest.raises(UserError, match='No such file'):
        build(tmp_path / 'x.csv')
    with pytest.raises(UserError, match=r'neither train\.csv nor val\.csv'):
        build(tmp_path)
    (tmp_path / 'train.csv').write_bytes('a.jpg,0'.encode('utf-16'))
    with pytest.raises(UserError, match='UTF-8'):
        build(tmp_path)


def test_only_val_is_enough_to_evaluate(tmp_path):
    make_image(str(tmp_path / 'a.jpg'))
    write(tmp_path / 'val.csv', 'a.jpg,3\n')
    assert build(tmp_path, False).labels.tolist() == [3]
    with pytest.raises(UserError, match='nothing to train on'):
        build(tmp_path)


def test_long_tables_take_little_memory(tmp_path):
    text = ''.join(f'train/n{n // 1300:08}/n{n // 1300:08}_{n:06}.JPEG,n{n // 1300:08}\n'
                   for n in range(20_000))
    part = read_table(str(write(tmp_path / 'x.csv', text)), str(tmp_path), 1000)['train']
    assert part.reader.table.nbytes / 20_000 < 50
    assert part.class_names == sorted({f'n{n // 1300:08}' for n in range(20_000)})
    assert np.array_equal(part.reader.table.labels, np.arange(20_000) // 1300)
