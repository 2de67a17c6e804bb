"""Reading images: every mode of the preprocessing fixtures, and every kind of broken file."""

import hashlib
import io
import json
import os
import struct
import subprocess
import sys
import types
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from common.data import images
from common.data.images import ImageError, is_image_name, read_image, show_path
from common.data.lists import scan_folder
from common.data.pixels import to_array
from common.deploy import infer
from common.deploy.pictures import find_pictures
from common.errors import UserError
from tests.support.data_folders import make_image
from tests.support.paths import FIXTURES

PREPROCESS = FIXTURES / 'preprocess'
with open(os.path.join(PREPROCESS, 'index.json'), encoding='utf-8') as file:
    INDEX = json.load(file)['images']


@pytest.mark.parametrize('name', INDEX)
def test_decodes_as_the_reference(name):
    image = read_image(os.path.join(PREPROCESS, name))
    assert image.mode == 'RGB' and list(image.size) == INDEX[name]['size_wh']
    assert hashlib.sha256(to_array(image).tobytes()).hexdigest() == INDEX[name]['rgb_sha256']


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new('RGB', (8, 8), color) for color in ('red', 'blue')]
    frames[0].save(tmp_path / 'a.gif', save_all=True, append_images=frames[1:])
    assert to_array(read_image(tmp_path / 'a.gif'))[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'RGBA', 'CMYK', 'I;16', 'F'])
def test_every_mode_becomes_rgb(tmp_path, mode):
    path = str(tmp_path / 'image.tif')
    Image.new(mode, (5, 4)).save(path)
    assert to_array(read_image(path)).shape == (4, 5, 3)


@pytest.mark.parametrize('name', ['with space.png', 'ünï-日本.png', 'new\nline.png', b'\xff.png'])
def test_any_file_name(tmp_path, name):
    path = os.path.join(os.fsencode(tmp_path), os.fsencode(name))
    Image.new('RGB', (3, 2)).save(os.fsdecode(path))
    assert read_image(path).size == (3, 2)
    os.truncate(path, 30)
    with pytest.raises(ImageError) as raised:
        read_image(path)
    assert '\n' not in str(raised.value) and str(raised.value).isprintable()


def test_truncated_jpeg(tmp_path):
    path = str(tmp_path / 'cut.jpg')
    make_image(path, (200, 200))
    os.truncate(path, os.path.getsize(path) // 2)
    with pytest.raises(ImageError, match=r'cut\.jpg: damaged image: .*truncated'):
        read_image(path)


def test_empty_missing_folder_text(tmp_path):
    (tmp_path / 'empty.jpg').touch()
    (tmp_path / 'text.jpg').write_text('no image')
    (tmp_path / 'folder.jpg').mkdir()
    for name, reason in {
            'empty.jpg': 'the file is empty', 'text.jpg': 'not an image', 'folder.jpg': 'directory',
            'none.jpg': 'no such image file'}.items():
        with pytest.raises(ImageError, match=f'{name}.*{reason}'):
            read_image(str(tmp_path / name))


def make_png(width, height, data):
    def chunk(kind, content):
        body = kind + content
        return struct.pack('>I', len(content)) + body + struct.pack('>I', zlib.crc32(body))
    header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    return (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(data))
            + chunk(b'IEND', b''))


@pytest.mark.parametrize('case', ['at once', 'too large', 'cut short'])
def test_whole_files_and_others(tmp_path, monkeypatch, case):
    path = str(tmp_path / 'image.png')
    expected = np.random.default_rng(0).integers(0, 256, (60, 50, 3), dtype=np.uint8)
    Image.fromarray(expected).save(path)
    size = os.path.getsize(path)
    opened = []
    real_open = Image.open
    monkeypatch.setattr(Image, 'open', lambda file, formats: opened.append(file) or real_open(
        file, formats=formats))
    monkeypatch.setattr(images, 'READ_WHOLE', size - (case == 'too large'))
    if case == 'cut short':
        monkeypatch.setattr(images, 'open_regular', lambda _: ShortFile(path))
    np.testing.assert_array_equal(to_array(read_image(path)), expected)
    assert (opened == [path]) == (case != 'at once')


def test_an_image_in_many_strips(tmp_path):
    """Reading all that is left for every strip, as Pillow 10 would, takes their number squared."""
    expected = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    path = str(tmp_path / 'image.tif')
    Image.fromarray(expected).save(path, tiffinfo={278: 1})         # rows per strip
    with images._open(path) as image:
        assert len(image.tile) == 300
        assert image.decodermaxblock < os.path.getsize(path)
    np.testing.assert_array_equal(to_array(read_image(path)), expected)


class ShortFile(io.FileIO):
    def read(self, size):
        return super().read(size // 2)


@pytest.mark.filterwarnings('ignore::PIL.Image.DecompressionBombWarning')
@pytest.mark.parametrize('side', [13_400, 60_000])
def test_decompression_bomb(tmp_path, side):
    path = str(tmp_path / 'bomb.png')
    with open(path, 'wb') as file:
        file.write(make_png(side, side, bytes(1000)))
    with pytest.raises(ImageError, match=r'bomb\.png.*pixels'):
        read_image(path)


def test_damaged_bytes_never_raise_anything_else(tmp_path):
    rng = np.random.default_rng(0)
    for name in ('landscape_500x375.jpg', 'rgba.png', 'palette_transparent.png'):
        with open(os.path.join(PREPROCESS, name), 'rb') as file:
            content = np.frombuffer(file.read(), np.uint8)
        for _ in range(40):
            damaged = content[:rng.integers(1, len(content))].copy()
            damaged[rng.integers(0, len(damaged), 8)] = rng.integers(0, 256, 8)
            path = str(tmp_path / name)
            damaged.tofile(path)
            try:
                read_image(path)
            except ImageError as error:
                assert str(error).startswith(path)


POSTSCRIPT = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 8 8
%%EndComments
{ } loop
"""


@pytest.mark.parametrize('extension', images.ALL_EXTENSIONS)
def test_postscript_is_no_picture_under_any_name(tmp_path, monkeypatch, extension):
    """Pillow would start Ghostscript, which runs whatever the file says, for ever if it loops."""
    monkeypatch.setattr(subprocess, 'Popen', None)
    path = str(tmp_path / f'picture{extension}')
    binary = b'\xc5\xd0\xd3\xc6' + struct.pack('<7I', 32, len(POSTSCRIPT), *[0] * 5)
    for content in (POSTSCRIPT, binary + POSTSCRIPT):
        with open(path, 'wb') as file:
            file.write(content)
        with pytest.raises(ImageError, match='not an image'):
            read_image(path)
        with pytest.raises(ImageError, match='not an image'):
            images.decode_image(content, 'member')
        with pytest.raises(Image.UnidentifiedImageError):
            images.open_image(path)


def test_the_formats_that_are_read():
    """None of them is a language, or names other files; infer.py, which is copied, has the same."""
    assert images.FORMATS == ('JPEG', 'PNG', 'BMP', 'GIF', 'WEBP', 'TIFF', 'PPM')
    assert set(images.list_formats()) <= {*images.FORMATS, 'AVIF', 'HEIF'}
    assert infer.FORMATS == images.FORMATS


def test_a_format_that_is_not_listed_is_no_picture(tmp_path, monkeypatch):
    picture = Image.new('RGB', (8, 8), 'red')
    refused = 0
    Image.init()
    # Pillow's SPIDER writer takes the file's extension for its own, here .jpg.
    monkeypatch.setattr(Image, 'EXTENSION', dict(Image.EXTENSION))
    for name in sorted(set(Image.SAVE) - {'MPO', 'DIB', *images.list_formats()}):
        path = str(tmp_path / 'picture.jpg')
        try:
            picture.save(path, name)
            real = Image.open(path).format
        except (OSError, ValueError, KeyError, TypeError):
            continue                    # Pillow cannot write it here, or not read it back
        if real == name:
            with pytest.raises(ImageError):
                read_image(path)
            refused += 1
    assert refused > 5
    picture.save(path, 'MPO')
    assert read_image(path).size == (8, 8)


def test_a_pipe_is_no_picture(tmp_path):
    path = str(tmp_path / 'pipe.jpg')
    os.mkfifo(path)
    for read in (read_image, lambda path: images.check_upload(path, 10 ** 6, 10 ** 6)):
        with pytest.raises(ImageError, match='not a regular file'):
            read(path)
    with pytest.raises(OSError, match='not a regular file'):
        images.open_image(path)


def test_limits_are_checked_on_the_header(tmp_path):
    path = str(tmp_path / 'a.png')
    Image.new('RGB', (30, 20)).save(path)
    images.check_upload(path, os.path.getsize(path), 600)
    with pytest.raises(ImageError, match=r'a\.png: 30 x 20 pixels are too many \(at most 599'):
        images.check_upload(path, 10 ** 6, 599)
    with pytest.raises(ImageError, match=r'a\.png: \d+ bytes are too many'):
        images.check_upload(path, os.path.getsize(path) - 1, 600)


@pytest.mark.parametrize('name', ['a.jfif', 'a.jpe', 'a.JPG', 'a.tif', 'a.avif'])
def test_formats_that_people_have(tmp_path, name):
    if name.endswith('.avif') and 'AVIF' not in images.list_formats():
        pytest.skip('this Pillow is built without AVIF')
    Image.new('RGB', (32, 16), 'red').save(
        tmp_path / name, 'JPEG' if name.endswith(('jfif', 'jpe')) else None)
    assert is_image_name(name)
    red, green, blue = to_array(read_image(tmp_path / name))[8, 16].tolist()
    assert red > 240 and green < 15 and blue < 15


HEIC = b'\0\0\0\x18ftypheic\0\0\0\0mif1heic' + bytes(80)


@pytest.fixture
def forget_formats():
    """Which formats can be read is found out anew, before and after."""
    def forget():
        images.list_formats.cache_clear()
        images.list_extensions.cache_clear()
    forget()
    yield
    forget()


def test_a_format_without_its_plug_in_says_what_to_install(tmp_path, monkeypatch, caplog,
                                                           forget_formats):
    monkeypatch.setitem(sys.modules, 'pillow_heif', None)
    (tmp_path / 'cat').mkdir()
    path = str(tmp_path / 'cat' / 'photo.jpg')
    with open(path, 'wb') as file:
        file.write(HEIC)
    remedy = r'can be read with pillow-heif: pip install pillow-heif$'
    with pytest.raises(ImageError, match=r'photo\.jpg: a picture in HEIF, which ' + remedy):
        read_image(path)
    with pytest.raises(ImageError, match=r'^member: a picture in HEIF, which ' + remedy):
        images.decode_image(HEIC, 'member')
    os.rename(path, tmp_path / 'cat' / 'photo.heic')
    assert not is_image_name('photo.heic')
    with pytest.raises(UserError, match=r'holds no image .*\.heic can be read with pillow-heif'):
        scan_folder(str(tmp_path), '', ['cat'])
    with pytest.raises(UserError, match=r'no pictures in this folder. \.heic can be read with'):
        list(find_pictures([str(tmp_path)], ()))
    make_image(str(tmp_path / 'cat' / 'a.png'))
    assert len(scan_folder(str(tmp_path), '', ['cat']).table) == 1
    assert caplog.messages == [
        f'{tmp_path}: 1 file has no ending of a picture and is left out (.heic 1); .heic can be '
        'read with pillow-heif: pip install pillow-heif']


def test_a_plug_in_widens_what_is_read(tmp_path, monkeypatch, forget_formats):
    class Plugin(ImageFile.ImageFile):
        format = 'HEIF'

        def _open(self):
            self._mode, self._size = 'RGB', (4, 2)
            self.tile = []

        def load(self):
            self.im = Image.new('RGB', self.size, 'red').im

    def register(**options):
        Image.register_open('HEIF', Plugin, lambda head: head[4:12] == b'ftypheic')

    Image.init()
    monkeypatch.setattr(Image, 'OPEN', dict(Image.OPEN))
    monkeypatch.setattr(Image, 'ID', list(Image.ID))
    monkeypatch.setitem(sys.modules, 'pillow_heif', types.SimpleNamespace(
        register_heif_opener=register))
    (tmp_path / 'IMG_1.HEIC').write_bytes(HEIC)
    assert is_image_name('IMG_1.HEIC') and images.list_remedies(['.heic']) == []
    assert to_array(read_image(tmp_path / 'IMG_1.HEIC')).shape == (2, 4, 3)


def test_a_picture_of_a_phone(tmp_path, forget_formats):
    plug_in = pytest.importorskip('pillow_heif')
    plug_in.register_heif_opener()
    Image.new('RGB', (64, 48), 'red').save(tmp_path / 'a.heic')
    assert to_array(read_image(tmp_path / 'a.heic'))[24, 32, 0] > 240
    os.truncate(tmp_path / 'a.heic', 200)
    with pytest.raises(ImageError):
        read_image(tmp_path / 'a.heic')


def test_names():
    assert is_image_name('A.JPEG') and is_image_name('b.webp')
    assert not is_image_name('._a.jpg') and not is_image_name('notes.txt')
    assert show_path(b'a b/\xc3\xa9.jpg') == 'a b/é.jpg'
