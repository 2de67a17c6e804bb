"""demo.py: what its page answers, and that Gradio is asked for by name."""

import asyncio
import json
import tempfile
import types
import urllib.error
import urllib.request

import numpy as np
import pytest
from PIL import Image

from common.data.digits import load_digits_rgb
from common.deploy import demo
from common.deploy import engine as engines
from common.errors import UserError
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
    assert demo.analyse(trained, None, 'rollout', 1) == (None, None)


def test_gradio_is_asked_for_by_name(monkeypatch, capsys):
    monkeypatch.setattr(engines, 'is_installed', lambda module: False)
    assert demo.main(load_fixture('vit')[0], [f'-pretrained={fixture_path("vit")}']) == 2
    assert 'pip install gradio' in capsys.readouterr().err


def test_uploads_are_read_by_our_reader(tmp_path, monkeypatch):
    path = str(tmp_path / 'digit.jpg')
    digit(0).save(path, 'PNG')
    assert demo.read_upload(path).size == digit(0).size and demo.read_upload(None) is None
    monkeypatch.setattr(demo, 'MAX_PIXELS', 60)
    with pytest.raises(UserError, match='^8 x 8 pixels are too many'):
        demo.read_upload(path)
    with open(path, 'w') as file:
        file.write('%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n{ } loop\n')
    with pytest.raises(UserError, match='^Not an image'):
        demo.read_upload(path)
    digit(0).save(tmp_path / 'big.bmp')
    with open(tmp_path / 'big.bmp', 'ab') as file:
        file.truncate(demo.MAX_BYTES + 1)
    with pytest.raises(UserError, match='^20,000,001 bytes are too many'):
        demo.read_upload(str(tmp_path / 'big.bmp'))


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
    with urllib.request.urlopen(f'{url}config', timeout=30) as answer:
        prefix = json.load(answer).get('api_prefix', '')
    body = (b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n'
            b'Content-Type: image/jpeg\r\n\r\n' + content + b'\r\n--x--\r\n')
    request = urllib.request.Request(
        f'{url.rstrip("/")}{prefix}/upload', body,
        {'Content-Type': 'multipart/form-data; boundary=x'})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except urllib.error.URLError as error:      # it answered before everything was sent
        assert isinstance(error.reason, (BrokenPipeError, ConnectionResetError))
        return 413


@needs_gradio
def test_page_is_served(tmp_path):
    import gradio_client
    page = demo.build_page(load_fixture('vit')[1])
    _, url, _ = page.launch(server_name='127.0.0.1', prevent_thread_lock=True, quiet=True)
    try:
        with urllib.request.urlopen(f'{url}config', timeout=30) as answer:
            config = json.load(answer)
        labels = {part['props'].get('label') for part in config['components']}
        assert {'Picture', 'Classes', 'What the model attends to', 'Layer'} <= labels
        digit(3).save(tmp_path / 'three.png')
        client = gradio_client.Client(url, verbose=False)
        shown, _ = client.predict(gradio_client.handle_file(tmp_path / 'three.png'), 'rollout', 2,
                                  api_name='/analyse')
        assert shown['label'] == '3'
    finally:
        page.close()
