"""What a picture loses on its way to RGB of 8 bits is said, by every script, once."""

import logging
import os
import runpy
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from common.data import images
from common.data.datasets import build_dataset
from common.data.images import LOSSES, decode_image, read_image
from common.data.loader import build_loader
from common.data.preprocessing import Preprocessing
from common.data.sampler import EvalBatches
from common.data.transforms import build_train_transform
from common.deploy import card
from common.deploy.decode import read_crop
from common.deploy.preprocessing import write_preprocessing
from common.run.log import start_logging
from common.tools.check_data import main as check_data
from tests.support.data_folders import make_config, make_folders, make_image
from tests.support.paths import ROOT
from tests.support.trained_digits import fixture_path
from ViT.project import PROJECT
from vit_paddle.models import _read

RAMP = np.linspace(0, 1, 12).reshape(3, 4)
FADING = Image.fromarray((255 * RAMP).astype(np.uint8))


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    monkeypatch.setattr(images, '_said', bytearray(len(LOSSES)))


def make_deep(high=60_000, kind='<u2'):
    return Image.fromarray((high * RAMP).astype(kind))


def make_faded(mode, alpha=FADING):
    image = Image.new('RGB', FADING.size, 'red').convert(mode)
    image.putalpha(alpha)
    return image


PICTURES = {        # name: (picture, arguments of save, loss)
    '16_bits.png': (make_deep(), {}, 'range'),
    '12_bits.png': (make_deep(4095), {}, 'range'),
    '16_bits_of_which_8_are_used.png': (make_deep(255), {}, None),
    'big_endian.tif': (make_deep(kind='>u2'), {}, 'range'),
    '32_bits.tif': (make_deep(100_000, '<i4'), {}, 'range'),
    'shares.tif': (make_deep(1, '<f4'), {}, 'range'),
    'below_zero.tif': (make_deep(-9, '<f4'), {}, 'range'),
    'nan.tif': (make_deep(np.nan, '<f4'), {}, 'range'),
    'floats.tif': (make_deep(255, '<f4'), {}, None),
    'faded.png': (make_faded('RGB'), {}, 'transparency'),
    'faded_gray.png': (make_faded('L'), {}, 'transparency'),
    'faded.webp': (make_faded('RGB'), {'lossless': True}, 'transparency'),
    'opaque.png': (make_faded('RGB', Image.new('L', FADING.size, 255)), {}, None),
    'palette.gif': (FADING.convert('P'), {'transparency': 0}, 'transparency'),
    'palette.png': (FADING.convert('P'), {'transparency': 0}, 'transparency'),
    'key.png': (Image.new('RGB', (4, 3), 'red'), {'transparency': (255, 0, 0)}, 'transparency'),
    'unused_key.png': (Image.new('RGB', (4, 3), 'red'), {'transparency': (0, 0, 0)}, None),
    'rgb.jpg': (Image.new('RGB', (4, 3)), {}, None),
    'cmyk.jpg': (Image.new('CMYK', (4, 3)), {}, None),
    'gray.png': (FADING, {}, None),
    'two.png': (FADING.convert('1'), {}, None),
}


@pytest.mark.parametrize('name', PICTURES)
def test_every_kind_of_picture(name, tmp_path, caplog):
    image, options, loss = PICTURES[name]
    image.save(tmp_path / name, **options)
    expected = [] if loss is None else [f'{tmp_path / name}: {LOSSES[loss]}']
    found = read_image(str(tmp_path / name))
    assert found.mode == 'RGB' and found.info['loss'] == loss
    assert decode_image((tmp_path / name).read_bytes(), 'b').info['loss'] == loss
    assert [text.partition(' (Others')[0] for text in caplog.messages] == expected


def test_each_kind_is_said_once(tmp_path, caplog):
    for number in range(3):
        make_deep().save(tmp_path / f'{number}.png')
        make_faded('RGB').save(tmp_path / f'faded{number}.png')
    for path in sorted(tmp_path.iterdir()):
        read_image(str(path))
    assert len(caplog.messages) == 2
    assert '0.png: its values' in caplog.text and 'faded0.png: it is partly' in caplog.text


def test_what_a_file_calls_a_loss_is_none(tmp_path, caplog):
    text = PngImagePlugin.PngInfo()
    text.add_text('loss', 'range')
    Image.new('RGB', (4, 3)).save(tmp_path / 'a.png', pnginfo=text)
    assert read_image(str(tmp_path / 'a.png')).info['loss'] is None and not caplog.messages


def test_workers_of_a_loader_say_it_once(tmp_path, monkeypatch):
    monkeypatch.undo()                      # the memory that processes share
    images._said[:] = bytes(len(LOSSES))
    for number in range(8):
        path = tmp_path / 'train' / 'ab'[number % 2] / f'{number}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        make_deep().save(path)
    config = make_config(DATA__DATA_PATH=str(tmp_path), DATA__VAL_FRACTION=0.5)
    dataset = build_dataset(config, True, build_train_transform(config))
    start_logging(str(tmp_path))
    try:
        loader = build_loader(dataset, EvalBatches(len(dataset), 1), config, num_workers=1)
        for _ in range(2):                  # a worker each
            assert len(list(loader)) == len(dataset) > 1
    finally:
        start_logging()
        logging.getLogger('common').handlers.clear()
        logging.getLogger('common').propagate = True
    assert (tmp_path / 'log.txt').read_text().count('whole numbers') == 1


def test_check_data_counts_them(tmp_path, capsys):
    path = make_folders(tmp_path, classes=('a', 'b'))
    for number in range(2):
        make_deep().save(tmp_path / 'val' / 'a' / f'deep{number}.png')
    make_faded('RGB').save(tmp_path / 'train' / 'b' / 'faded.png')
    assert check_data(PROJECT, ['-dataset=imagefolder', f'-data_path={path}']) == 1
    text = capsys.readouterr().out
    assert f'1 train images, such as {path}/train/b/faded.png: it is partly' in text
    assert f'2 val images, such as {path}/val/a/deep0.png: its values' in text
    assert '2 problems found.' in text


@pytest.mark.runs
def test_python_demo_and_exported_script(tmp_path, caplog, capsys):
    make_deep().save(tmp_path / 'deep.png')
    _read(Image.open(tmp_path / 'deep.png'), False)
    _read((60_000 * RAMP).astype(np.uint16), False)
    assert len(caplog.messages) == 1 and f'{tmp_path}/deep.png: its values' in caplog.text
    caplog.clear()
    preprocessing = Preprocessing(32, 1.0, 'bicubic', [0.5] * 3, [0.5] * 3)
    read_crop(str(tmp_path / 'deep.png'), preprocessing, 60)
    assert f'{tmp_path}/deep.png: its values' in caplog.text
    card.write_script(str(tmp_path), ['paddle'])
    write_preprocessing(preprocessing, str(tmp_path))
    make_image(str(tmp_path / 'usual.png'))
    infer = runpy.run_path(str(tmp_path / 'infer.py'))['main']
    logits = np.array([[9., 8, 7, 6, 5, 0, 0, 0, 0, 0]])
    names = [str(tmp_path / name) for name in ('usual.png', 'deep.png')]
    assert infer(names, lambda: lambda images: logits) == 0
    assert capsys.readouterr().err == f'note: {names[1]}: values above 255 become white\n'


@pytest.mark.runs
def test_predict_says_it_beside_its_table_as_all_of_the_log(tmp_path):
    for name in ('a.png', 'b.png'):
        make_deep().save(tmp_path / name)
    result = subprocess.run(
        [sys.executable, os.path.join(ROOT, 'ViT', 'predict.py'), str(tmp_path),
         f'-pretrained={fixture_path("vit")}', '-format=csv', '-opts', 'DATA.CROP_PCT', '0.9'],
        capture_output=True, text=True, check=True)
    said = result.stderr.splitlines()
    assert said[0].startswith('Weights from ') and said[-1].startswith('2 pictures in ')
    assert 'The checkpoint says DATA.CROP_PCT 1.0; it is 0.9, as set.' in said
    lost, = (line for line in said if LOSSES['range'] in line)      # of two threads the first
    assert lost.startswith(f'{tmp_path}/') and lost.endswith(' (Others are not named.)')
