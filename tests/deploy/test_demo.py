"""demo.py: what its page answers, and that Gradio is asked for by name."""

import asyncio
import json
import os
import struct
import tempfile
import types
import urllib.error
import urllib.request
import zlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from common.data.digits import load_digits_rgb
from common.data.images import read_image
from common.data.preprocessing import Preprocessing
from common.deploy import demo
from common.deploy import engine as engines
from common.errors import UserError
from tests.support.data_folders import make_folders, make_image, write_turned
from tests.support.trained_digits import fixture_path, load_fixture

needs_gradio = pytest.mark.skipif(
    not engines.is_installed('gradio'), reason='gradio is not installed (requirements-extra.txt)')


def digit(index):
    return Image.fromarray(load_digits_rgb()[0][index])


@pytest.mark.parametrize('name', ['vit', 't2t'])
def test_answer_has_the_classes_and_an_overlay(name):
    trained = load_fixture(name)[1]
    layers = len(trained.model.blocks)
    shares, heat = demo.analyse(trained, digit(0), 'rollout', layers)
    assert max(shares, key=shares.get) == '0' and len(shares) == 5
    assert 0.5 < sum(shares.values()) <= 1
    assert heat.size == (480, 480) and heat.mode == 'RGB'
    other = demo.analyse(trained, digit(0), 'mean of heads', layers)[1]
    first = demo.analyse(trained, digit(0), 'rollout', 1)[1]
    assert (np.asarray(heat) != np.asarray(other)).any()
    assert (np.asarray(heat) != np.asarray(first)).any()


def test_gradio_is_asked_for_by_name(monkeypatch, capsys):
    monkeypatch.setattr(engines, 'is_installed', lambda module: False)
    assert demo.main(load_fixture('vit')[0], [f'-pretrained={fixture_path("vit")}']) == 2
    assert 'pip install gradio' in capsys.readouterr().err


PREPROCESSING = Preprocessing(8, 1.0, 'bicubic', [0.5] * 3, [0.5] * 3)


def read_upload(path):
    return demo.read_upload(str(path), PREPROCESSING)


@pytest.mark.runs
def test_uploads_are_read_by_our_reader_in_another_process(tmp_path):
    for upright in (False, True):
        path = tmp_path / f'{upright}.jpg'
        make_image(str(path), (40, 30))
        write_turned(Image.open(path), path, 6)
        preprocessing = Preprocessing(8, 0.9, 'bilinear', [0.5] * 3, [0.5] * 3, None, upright)
        np.testing.assert_array_equal(
            np.asarray(demo.read_upload(str(path), preprocessing)),
            np.asarray(preprocessing.crop(read_image(path, upright))))


POSTSCRIPT = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n{ } loop\n'


@pytest.mark.runs
def test_a_picture_that_cannot_be_used_gets_a_reason(tmp_path):
    make_image(str(tmp_path / 'cut.jpg'), (400, 300))
    os.truncate(tmp_path / 'cut.jpg', 3000)
    (tmp_path / 'text.jpg').write_bytes(POSTSCRIPT)
    (tmp_path / 'empty.png').touch()
    digit(0).save(tmp_path / 'big.bmp')
    os.truncate(tmp_path / 'big.bmp', demo.MAX_BYTES + 1)
    for name, width, height in (('huge.png', 20_000, 15_000), ('large.png', 10_000, 6_000)):
        header = struct.pack('>II', width, height) + bytes([8, 2, 0, 0, 0])
        (tmp_path / name).write_bytes(
            b'\x89PNG\r\n\x1a\n' + struct.pack('>I', 13) + b'IHDR' + header
            + struct.pack('>I', zlib.crc32(b'IHDR' + header))
            + struct.pack('>I', 1000) + b'IDAT' + bytes(1000))
    for name, reason in {
            'cut.jpg': '^Damaged image: .*truncated', 'text.jpg': '^Not an image, or a damaged',
            'empty.png': '^The file is empty', 'big.bmp': '^20,000,001 bytes are too many',
            'huge.png': '^300,000,000 pixels are too many',
            'large.png': '^10000 x 6000 pixels are too many', 'none.jpg': 'No such file'}.items():
        with pytest.raises(UserError, match=reason) as raised:
            read_upload(tmp_path / name)
        assert str(tmp_path) not in str(raised.value), name


@pytest.mark.runs
def test_decoding_has_a_deadline_and_may_crash(tmp_path, monkeypatch):
    digit(0).save(tmp_path / 'a.png')
    monkeypatch.setattr(demo, 'DECODE_SECONDS', 0.01)
    with pytest.raises(UserError, match='^The picture takes more than 0.01 seconds to decode'):
        read_upload(tmp_path / 'a.png')
    monkeypatch.setattr(demo, 'DECODE_SECONDS', 60)
    (tmp_path / 'sitecustomize.py').write_text('import os; os.abort()')
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    with pytest.raises(UserError, match='its decoder ended unexpectedly'):
        read_upload(tmp_path / 'a.png')


def test_pictures_are_kept_by_secret(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, 'MAX_KEPT', 2)
    kept = demo.KeptPictures()
    path = tmp_path / 'a.png'
    path.touch()
    tokens = [kept.add(str(path)) for _ in range(3)]
    assert len(set(tokens)) == 3 and len(tokens[0]) > 40
    assert [kept.find(token) for token in tokens] == [None, str(path), str(path)]
    for token in (None, '', str(path), ['x'], {'path': str(path)}, '../a.png'):
        assert kept.find(token) is None
    path.unlink()
    assert kept.find(tokens[2]) is None


def test_examples(tmp_path):
    trained = load_fixture('vit')[1]
    (tmp_path / 'shown').mkdir()
    paths = demo.choose_examples(None, str(tmp_path / 'shown'), trained)
    assert len(paths) == 8 and {Image.open(path).size for path in paths} == {(8, 8)}
    root = make_folders(tmp_path / 'data', parts=('val',), per_class=5)
    os.truncate(os.path.join(root, 'val', 'dog', '0.jpg'), 30)
    make_image(os.path.join(root, 'val', 'cat', '0.jpg'), (2000, 1000))
    paths = demo.choose_examples(os.path.join(root, 'val'), str(tmp_path / 'shown'), trained)
    assert 5 <= len(paths) <= 8 and max(Image.open(paths[0]).size) == 512
    with pytest.raises(UserError, match='no pictures in this folder'):
        (tmp_path / 'none').mkdir()
        demo.choose_examples(str(tmp_path / 'none'), str(tmp_path / 'shown'), trained)


def test_the_page_names_model_checkpoint_and_device():
    trained = replace(load_fixture('vit')[1], source='output/<b>/best')
    assert demo.describe(trained) == (
        'output/\\<b\\>/best · 10 classes · 16 x 16 pixels · on cpu')


@pytest.mark.parametrize('announced', [True, False])
def test_large_requests_are_cut_off(announced):
    received, sent = [], []

    async def app(scope, receive, send):
        while (message := await receive())['type'] == 'http.request':
            received.append(len(message['body']))

    async def receive():
        return {'type': 'http.request', 'body': bytes(40)}

    async def send(message):
        sent.append(message.get('status'))

    headers = [(b'content-length', b'101')] if announced else []
    asyncio.run(demo.BodyLimit(app, 100)({'type': 'http', 'headers': headers}, receive, send))
    assert (received, sent[:1]) == ([], [413]) if announced else (received, sent) == ([40, 40], [])


@needs_gradio
def test_what_a_visitor_sends_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setenv('GRADIO_TEMP_DIR', str(tmp_path / 'cache'))
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path / 'cache'))
    (tmp_path / 'cache').mkdir()
    monkeypatch.setattr(Image, 'preinit', refuse)           # by Image.open without formats
    page = demo.build_page(load_fixture('vit')[1])
    url = page.launch(server_name='127.0.0.1', prevent_thread_lock=True, quiet=True,
                      **demo.limit_requests())[1]
    try:
        assert post_file(url, bytes(demo.MAX_BYTES + 2)) == 413
        assert post_file(url, bytes(demo.MAX_BODY + 2)) == 413
        assert not [path for path in (tmp_path / 'cache').rglob('*') if path.is_file()
                    and path.stat().st_size > 10 ** 5]
    finally:
        page.close()
    assert page.delete_cache == (demo.KEPT_SECONDS, demo.KEPT_SECONDS)
    assert (page._queue.max_size, page._queue.default_concurrency_limit) == (demo.MAX_WAITING, 1)
    upload = next(block for block in page.blocks.values()
                  if getattr(block, 'label', None) == 'Picture')
    payload = types.SimpleNamespace(path='/some/where.jpg', url='data:image/eps;base64,JSFQUw==')
    assert upload.preprocess(payload) == '/some/where.jpg'
    with pytest.raises(UserError, match='addresses are not fetched'):
        asyncio.run(upload.async_move_resource_to_block_cache(f'{url}config'))


def refuse():
    raise AssertionError('a picture was opened without our reader')


def post_file(url, content):
    """Upload a file as the page does; return the HTTP status, 413 also where it hangs up."""
    with urllib.request.urlopen(f'{url}config', timeout=300) as answer:
        prefix = json.load(answer).get('api_prefix', '')
    body = (b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n'
            b'Content-Type: image/jpeg\r\n\r\n' + content + b'\r\n--x--\r\n')
    request = urllib.request.Request(
        f'{url.rstrip("/")}{prefix}/upload', body,
        {'Content-Type': 'multipart/form-data; boundary=x'})
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except urllib.error.URLError as error:      # it answered before everything was sent
        assert isinstance(error.reason, (BrokenPipeError, ConnectionResetError))
        return 413


@needs_gradio
@pytest.mark.runs
def test_page_is_served(tmp_path):
    import gradio_client
    page = demo.build_page(load_fixture('vit')[1])
    _, url, _ = page.launch(server_name='127.0.0.1', prevent_thread_lock=True, quiet=True)
    try:
        with urllib.request.urlopen(f'{url}config', timeout=300) as answer:
            config = json.load(answer)
        labels = {part['props'].get('label') for part in config['components']}
        assert {'Picture', 'Classes', 'What the model attends to', 'Layer'} <= labels
        digit(3).save(tmp_path / 'three.png')
        client = gradio_client.Client(url, verbose=False)
        status, shown, *_ = client.predict(
            gradio_client.handle_file(tmp_path / 'three.png'), 'rollout', 2, api_name='/analyse')
        assert shown['label'] == '3' and status.startswith('**3**, 8')
        (tmp_path / 'bad.png').write_bytes(b'no picture')
        status, shown, *_ = client.predict(
            gradio_client.handle_file(tmp_path / 'bad.png'), 'rollout', 2, api_name='/analyse')
        assert status.startswith('**This picture cannot be classified.** Not an image')
    finally:
        page.close()
