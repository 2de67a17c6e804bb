"""EXIF's orientation is applied, or left alone, by every path from a file to the model alike."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image, ImageOps

from common.cli import build_config
from common.data.datasets import open_dataset
from common.data.images import decode_image, read_image
from common.data.preprocessing import Preprocessing, list_recorded_options, read_preprocessing
from common.deploy import demo, predict, visualize
from common.deploy.export import export_model
from common.deploy.preprocessing import load_preprocessing
from common.deploy.trained import load_trained, read_record
from common.errors import UserError
from common.run.launch import run_single
from common.tools import check_data
from tests.support.data_folders import make_config, make_folders, make_image, write_turned
from tests.support.sources import write_csv, write_shards, write_tar, write_zip
from tests.support.trained_digits import fixture_path, load_fixture
from ViT.project import PROJECT

ON = ['-opts', 'DATA.EXIF_ORIENTATION', 'True']


def turn(path, orientation=6):
    """Give a picture an orientation; return (its pixels as stored, and as they are meant)."""
    write_turned(Image.open(path), path, orientation)
    with Image.open(path) as image:
        return image.convert('RGB'), ImageOps.exif_transpose(image).convert('RGB')


def is_same(first, second):
    return first.size == second.size and bool((np.asarray(first) == np.asarray(second)).all())


@pytest.mark.parametrize('ending', ['jpg', 'png', 'webp'])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_every_orientation_as_pillow_undoes_it(tmp_path, orientation, ending):
    path = str(tmp_path / f'a.{ending}')
    make_image(path)
    stored, meant = turn(path, orientation)
    assert is_same(read_image(path), stored) and is_same(read_image(path, True), meant)
    with open(path, 'rb') as file:
        assert is_same(decode_image(file.read(), 'a', True), meant)
    assert is_same(stored, meant) == (orientation == 1)


@pytest.mark.parametrize('exif', [
    b'', b'Exif\0\0', b'Exif\0\0MM\0*\xff\xff\xff\xff',
    b'Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0abc\0\0\0\0\0'])     # text
def test_damaged_exif_turns_nothing(tmp_path, exif):
    path = str(tmp_path / 'a.jpg')
    Image.new('RGB', (9, 5), 'red').save(path, exif=exif)
    assert read_image(path, True).size == (9, 5)


@pytest.mark.parametrize('form', ['folders', 'zip', 'tar', 'csv', 'shards'])
def test_training_and_evaluation_in_every_form(tmp_path, form):
    root = make_folders(tmp_path / 'data', classes=('a',), per_class=1)
    pictures = {part: turn(os.path.join(root, part, 'a', '0.jpg')) for part in ('train', 'val')}
    options = {
        'folders': lambda: {'DATA__DATA_PATH': root},
        'zip': lambda: {'DATA__DATA_PATH': write_zip(root, tmp_path / 'x.zip')},
        'tar': lambda: {'DATA__DATA_PATH': write_tar(root, tmp_path / 'x.tar')},
        'csv': lambda: {'DATA__DATASET': 'csv',
                        'DATA__DATA_PATH': write_csv(root, os.path.join(root, 'x.csv'))},
        'shards': lambda: {'DATA__DATASET': 'shards',
                           'DATA__DATA_PATH': write_shards(root, tmp_path / 'shards', 1)},
    }[form]()
    for upright in (False, True):
        config = make_config(**options, DATA__EXIF_ORIENTATION=upright)
        for part, is_train in (('train', True), ('val', False)):
            assert is_same(open_dataset(config, is_train).read(0), pictures[part][upright])


def test_checks_read_as_training_does(tmp_path, monkeypatch, capsys):
    root = make_folders(tmp_path, classes=('a',), per_class=1)
    seen = []
    monkeypatch.setattr('common.data.readers.read_image',
                        lambda path, upright: seen.append(upright) or Image.new('RGB', (1, 1)))
    for upright in (False, True):
        check_data.check_data(make_config(DATA__DATA_PATH=root, DATA__EXIF_ORIENTATION=upright))
    assert seen == [False, False, True, True]


@pytest.fixture
def pictures(tmp_path):
    """A turned JPEG, and its pixels as they are meant, without EXIF."""
    path = tmp_path / 'turned.jpg'
    make_image(path, (64, 40), seed=3)
    turn(path)[1].save(tmp_path / 'upright.png')
    return str(path), str(tmp_path / 'upright.png')


def classify(capsys, picture, *arguments):
    assert predict.main(PROJECT, [picture, '-format=jsonl', *arguments]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])['predictions']


@pytest.mark.runs
def test_predict_with_weights_and_with_an_export(tmp_path, pictures, capsys):
    weights = f'-pretrained={fixture_path("vit")}'
    turned, upright = (classify(capsys, path, weights, *ON) for path in pictures)
    assert turned == upright != classify(capsys, pictures[0], weights)
    trained = load_with(ON)
    export_model(trained, str(tmp_path / 'exported'))
    assert load_preprocessing(str(tmp_path / 'exported')).exif_orientation is True
    exported = [classify(capsys, path, f'-model={tmp_path / "exported"}') for path in pictures]
    assert exported[0] == exported[1]
    assert [row['class'] for row in exported[0]] == [row['class'] for row in turned]


def load_with(argv):
    return load_trained(PROJECT, predict._parse(PROJECT, [
        'x.jpg', f'-pretrained={fixture_path("vit")}', '-device=cpu', *argv]))


def test_an_older_export_ignores_it_and_a_wrong_value_is_refused(tmp_path):
    values = vars(Preprocessing(8, 1.0, 'bicubic', [0.5] * 3, [0.5] * 3)).copy()
    for value, expected in ((None, False), (True, True), ('yes', None), (1, None)):
        values['exif_orientation'] = value
        written = {key: item for key, item in values.items()
                   if value is not None or key != 'exif_orientation'}
        (tmp_path / 'preprocessing.json').write_text(json.dumps(written))
        if expected is not None:
            assert load_preprocessing(str(tmp_path)).exif_orientation is expected
            continue
        with pytest.raises(UserError, match='exif_orientation must be true or false'):
            load_preprocessing(str(tmp_path))


@pytest.mark.runs
def test_demo_and_attention(tmp_path, pictures):
    for trained, is_on in ((load_with(ON), True), (load_fixture('vit')[1], False)):
        assert trained.preprocessing.exif_orientation is is_on
        image = demo.read_upload(pictures[0], trained.preprocessing)
        expected = trained.preprocessing.crop(Image.open(pictures[1]))
        assert is_same(image, expected) is is_on
    maps = []
    for picture in pictures:
        folder = tmp_path / os.path.basename(picture)[:3]
        assert visualize.main(PROJECT, [picture, f'-pretrained={fixture_path("vit")}',
                                        f'-output={folder}', '-save_arrays', *ON]) == 0
        name = os.path.splitext(os.path.basename(picture))[0]
        maps.append(np.load(folder / f'{name}.attention.npz')['attention'])
    np.testing.assert_array_equal(*maps)


def test_a_run_records_it_for_what_comes_after(tmp_path, pictures, capsys):
    root = make_folders(tmp_path / 'data', classes=('a', 'b'), per_class=2)
    options = {'DATA.DATASET': 'imagefolder', 'DATA.DATA_PATH': root, 'DATA.IMAGE_SIZE': 16,
               'DATA.BATCH_SIZE': 2, 'DATA.NUM_WORKERS': 0, 'DATA.EXIF_ORIENTATION': True,
               'MODEL.NUM_CLASSES': 2, 'MODEL.EMBED_DIM': 16, 'MODEL.DEPTH': 1,
               'MODEL.NUM_HEADS': 2, 'MODEL.PATCH_SIZE': 8, 'TRAIN.NUM_EPOCHS': 1,
               'TRAIN.BASE_LR': 0.05, 'DEVICE': 'cpu'}
    argv = [str(part) for item in options.items() for part in item]
    assert run_single(PROJECT, [f'-output={tmp_path / "runs"}', '-opts', *argv]) == 0
    capsys.readouterr()
    weights = str(next((tmp_path / 'runs').glob('*/best.pdparams')))
    record = read_record(weights, PROJECT)['preprocessing']
    assert record['exif_orientation'] is True
    assert list_recorded_options(record)['DATA.EXIF_ORIENTATION'] is True
    # Fine-tuning and evaluation from these weights take it on, unless they are told otherwise.
    told = build_config(PROJECT, None, {'MODEL.PRETRAINED': weights}, [])
    assert read_preprocessing(told).exif_orientation
    told = build_config(PROJECT, None, {'MODEL.PRETRAINED': weights},
                        ['DATA.EXIF_ORIENTATION', 'False'])
    assert not read_preprocessing(told).exif_orientation
    shares = [classify(capsys, path, f'-pretrained={weights}') for path in pictures]
    assert shares[0] == shares[1]
    off = classify(capsys, pictures[0], f'-pretrained={weights}', '-opts',
                   'DATA.EXIF_ORIENTATION', 'False')
    assert off != shares[0]
    shutil.rmtree(tmp_path / 'runs')
