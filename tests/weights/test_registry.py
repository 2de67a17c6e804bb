"""Downloads from a local server that behaves badly, the cache, and the names."""

import hashlib
import http.server
import logging
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import pytest

from common.errors import RunError, UserError
from common.machine import cache
from common.machine import download as download_module
from common.machine.download import download
from common.weights import registry
from tests.support.paths import FIXTURES, ROOT

WEIGHTS = os.path.join(FIXTURES, 'weights')
CONTENT = bytes(range(256)) * 2000          # 512,000 bytes


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT as the path says; remembers the requests."""

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        self.server.requests.append((self.path, self.headers.get('Range')))
        count = len([path for path, _ in self.server.requests if path == self.path])
        getattr(self, f'serve_{self.path[1:].split("/")[0].split(".")[0]}')(count)

    def serve_good(self, count, content=CONTENT, tag='"v1"'):
        start = 0
        wanted = self.headers.get('Range')
        if wanted and self.headers.get('If-Range') == tag:
            start = int(wanted[6:-1])
            if start >= len(content):
                self.send_error(416)
                return None
            self.send_response(206)
            self.send_header('Content-Range', f'bytes {start}-{len(content) - 1}/{len(content)}')
        else:
            self.send_response(200)
        self.send_header('ETag', tag)
        self.send_header('Content-Length', str(len(content) - start))
        self.end_headers()
        self.send_body(content[start:], count)
        return None

    def send_body(self, content, count):
        self.wfile.write(content)

    def serve_trickles(self, count):
        """Send a part, then a byte now and then, for ever; the second time all of it."""
        self.send_body = self.send_slowly if count == 1 else self.send_body
        self.serve_good(count)

    def send_slowly(self, content, count):
        self.wfile.write(content[:100_000])
        for number in range(100_000, len(content)):
            time.sleep(0.05)
            try:
                self.wfile.write(content[number:number + 1])
            except OSError:
                break                               # the client has had enough

    def serve_headers(self, count):
        """Answer with a header of a byte now and then, for ever; the second time with the file."""
        if count > 1:
            self.serve_good(count)
            return
        self.wfile.write(b'HTTP/1.1 200 OK\r\nX-Long: ')
        self.send_bytes()

    def serve_chunks(self, count):
        """Send a chunk, then a length of endless zeros; the second time the file."""
        if count > 1:
            self.serve_good(count)
            return
        self.wfile.write(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n')
        self.send_bytes()

    def send_bytes(self):
        for _ in range(400):
            time.sleep(0.05)
            try:
                self.wfile.write(b'0')
            except OSError:
                self.server.has_left = True         # the client has had enough
                break

    def serve_breaks(self, count):
        """Break off after a part, twice."""
        self.send_body = self.send_part
        self.serve_good(count)

    def send_part(self, content, count):
        self.wfile.write(content[:200_000] if count < 3 else content)

    def serve_stuck(self, count):
        """Break off at the same place for ever."""
        self.send_response(200)
        self.send_header('Content-Length', '1000')
        self.end_headers()
        self.wfile.write(b'x' * 10)

    def serve_changes(self, count):
        """Break off, and have another version of the file at the second request."""
        if count == 1:
            self.send_body = self.send_part
            self.serve_good(count, content=b'old' * 100_000, tag='"v0"')
        else:
            self.serve_good(count)

    def serve_lies(self, count):
        """Announce more than there is."""
        self.send_response(200)
        self.send_header('Content-Length', str(len(CONTENT) + 1000))
        self.end_headers()
        self.wfile.write(CONTENT)

    def serve_short(self, count):
        """Announce less than there is."""
        self.send_response(200)
        self.send_header('Content-Length', '1000')
        self.end_headers()
        self.wfile.write(CONTENT)

    def serve_wrongpart(self, count):
        """Break off, then send another part than asked for, then all."""
        if count == 1:
            self.send_body = self.send_part
            self.serve_good(count)
        elif count == 2:
            self.send_response(206)
            self.send_header('Content-Range', f'bytes 5-{len(CONTENT) - 1}/{len(CONTENT)}')
            self.end_headers()
            self.wfile.write(CONTENT[5:])
        else:
            self.serve_good(count)

    def serve_moved(self, count):
        self.send_response(302)
        self.send_header('Location', '/good.bin')
        self.send_header('X-Linked-ETag', f'"{self.server.announced}"')
        self.end_headers()

    def serve_circle(self, count):
        self.send_response(302)
        self.send_header('Location', '/circle.bin')
        self.end_headers()

    def serve_escape(self, count):
        self.send_response(302)
        self.send_header('Location', 'file:///etc/passwd')
        self.end_headers()

    def serve_gone(self, count):
        self.send_error(404)

    def serve_failing(self, count):
        self.send_error(500)

    def serve_busy(self, count):
        if count < 3:
            self.send_error(503)
        else:
            self.serve_good(count)

    def serve_checkpoint(self, count):
        with open(os.path.join(WEIGHTS, 'vit/timm_safetensors/model.safetensors'), 'rb') as file:
            self.serve_good(count, content=file.read())

    def serve_repository(self, count):
        with open(os.path.join(WEIGHTS, 'vit/hf_vit', self.path.rsplit('/', 1)[-1]), 'rb') as file:
            self.serve_good(count, content=file.read())


@pytest.fixture()
def server(monkeypatch, tmp_path):
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    server.requests = []
    server.has_left = False
    server.announced = hashlib.sha256(CONTENT).hexdigest()
    server.url = f'http://127.0.0.1:{server.server_port}'
    thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.01})
    thread.start()
    monkeypatch.setattr(download_module, 'PAUSE', 0.001)
    monkeypatch.setattr(download_module, 'TIMEOUT', 5)
    monkeypatch.setenv('VIT_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setenv('no_proxy', '*')
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def get(server, name, path, **options):
    return download([(f'{server.url}/{name}', str(path))], **options)


@pytest.mark.parametrize('name, requests', [
    ('good.bin', 1), ('breaks.bin', 3), ('changes.bin', 2), ('moved.bin', 1), ('busy.bin', 3),
    ('wrongpart.bin', 3)])
def test_arrives_whole(server, tmp_path, name, requests):
    path = tmp_path / 'folder' / 'file.bin'
    assert get(server, name, path) == str(path)
    assert path.read_bytes() == CONTENT
    assert len([entry for entry in server.requests if entry[0] == f'/{name}']) == requests
    assert sorted(os.listdir(path.parent)) == ['file.bin', 'file.bin.lock']


def test_resumes_where_it_broke_off(server, tmp_path):
    get(server, 'breaks.bin', tmp_path / 'file.bin')
    assert [part for _, part in server.requests] == [None, 'bytes=200000-', 'bytes=400000-']


def test_a_download_that_hardly_moves_is_begun_again_where_it_was(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download_module, 'RATE_SECONDS', 0.5)
    monkeypatch.setattr(download_module, 'LEAST_RATE', 1 << 20)
    started = time.monotonic()
    get(server, 'trickles.bin', tmp_path / 'file.bin')
    assert time.monotonic() - started < 120         # all of it would take 6 hours
    (_, first), (_, second) = server.requests
    assert first is None and 100_000 <= int(second[len('bytes='):-1]) < 100_100
    assert (tmp_path / 'file.bin').read_bytes() == CONTENT


@pytest.mark.parametrize('name', ['headers.bin', 'chunks.bin'])
def test_headers_and_lengths_that_trickle_end_the_connection(server, tmp_path, monkeypatch, name,
                                                             caplog):
    """Each byte comes in time for the socket, and the last never would."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(download_module, 'RATE_SECONDS', 0.3)
    monkeypatch.setattr(download_module, 'CONNECT_SECONDS', 0.3)
    started = time.monotonic()
    get(server, name, tmp_path / 'file.bin')
    assert time.monotonic() - started < 120
    assert 'fewer than 1,000 bytes a second arrive; trying again' in caplog.text
    assert len(server.requests) == 2 and (tmp_path / 'file.bin').read_bytes() == CONTENT
    deadline = time.monotonic() + 120
    while not server.has_left:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_resumes_what_an_earlier_process_left(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download_module, 'TRIES', 1)
    path = tmp_path / 'file.bin'
    with pytest.raises(RunError, match='200,000 of 512,000 bytes arrived'):
        get(server, 'breaks.bin', path)
    assert not path.exists() and (tmp_path / 'file.bin.part').stat().st_size == 200_000
    monkeypatch.setattr(download_module, 'TRIES', 5)
    get(server, 'breaks.bin', path)
    assert server.requests[1][1] == 'bytes=200000-'
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize('name, reason, requests', [
    ('gone.bin', '404', 1), ('failing.bin', '500', 5), ('lies.bin', '512,000 of 513,000 bytes', 5),
    ('stuck.bin', '10 of 1,000 bytes', 5), ('circle.bin', '302', None),
    ('escape.bin', 'file:///etc/passwd. is not allowed', 1)])
def test_failures_are_bounded_and_named(server, tmp_path, name, reason, requests):
    path = tmp_path / 'file.bin'
    with pytest.raises(RunError, match=reason) as error:
        get(server, name, path)
    assert f'{server.url}/{name}' in str(error.value)
    assert not path.exists()
    assert requests is None or len(server.requests) == requests


def test_a_length_that_is_too_small_is_found_by_hash_or_check(server, tmp_path):
    with pytest.raises(RunError, match='SHA-256'):
        get(server, 'short.bin', tmp_path / 'a.bin', sha256=server.announced)
    with pytest.raises(RunError, match='not a checkpoint'):
        get(server, 'short.bin', tmp_path / 'b.bin', check=registry.open_container)
    assert not any(name.endswith(('.bin', '.part')) for name in os.listdir(tmp_path))


def test_a_redirect_never_leads_from_https_to_http():
    follow, request = download_module._Redirects().redirect_request, urllib.request.Request
    for new in ('http://example.org/b', 'HTTP://example.org/b', 'ftp://example.org/b'):
        with pytest.raises(download_module.DownloadError, match='it redirects to'):
            follow(request('https://example.org/a'), None, 302, 'Found', {}, new)
    for old, new in (('https', 'https'), ('http', 'http'), ('http', 'https')):
        found = follow(request(f'{old}://example.org/a'), None, 302, 'Found', {},
                       f'{new}://example.org/b')
        assert found.full_url == f'{new}://example.org/b'


def test_hashes(server, tmp_path):
    digest = hashlib.sha256(CONTENT).hexdigest()
    get(server, 'good.bin', tmp_path / 'a.bin', sha256=digest[:8])
    with pytest.raises(RunError, match=f'its SHA-256 is {digest}, not 0000'):
        get(server, 'good.bin', tmp_path / 'b.bin', sha256='0000')
    server.announced = 'f' * 64             # what a redirect of Hugging Face announces
    with pytest.raises(RunError, match='not f{64}'):
        get(server, 'moved.bin', tmp_path / 'c.bin')


def test_second_source(server, tmp_path):
    targets = [(f'{server.url}/gone.bin', str(tmp_path / 'a.npz')),
               (f'{server.url}/good.bin', str(tmp_path / 'b.npz'))]
    assert download(targets) == str(tmp_path / 'b.npz')


def test_no_server(tmp_path, monkeypatch):
    monkeypatch.setattr(download_module, 'PAUSE', 0.001)
    monkeypatch.setenv('no_proxy', '*')
    with pytest.raises(RunError, match='the connection failed .*\n.*by other means'):
        download([('http://127.0.0.1:9/file.bin', str(tmp_path / 'file.bin'))])


@pytest.fixture
def silent_host(monkeypatch):
    """A name with several addresses, none of which ever answers."""
    waits = []

    def wait(place, timeout, source_address):
        waits.append(timeout)
        time.sleep(timeout)
        raise TimeoutError('timed out')

    real = socket.getaddrinfo
    monkeypatch.setattr(download_module.socket, 'getaddrinfo', lambda host, *rest, **options: [
        (0, 0, 0, '', (f'10.0.0.{number}', 443)) for number in range(6)]
        if host == 'huggingface.co' else real(host, *rest, **options))
    monkeypatch.setattr(download_module.socket, 'create_connection', wait)
    monkeypatch.setattr(download_module, 'CONNECT_SECONDS', 0.4)
    monkeypatch.setenv('no_proxy', '*')
    return waits


def test_a_host_that_does_not_answer_is_given_up_soon_with_a_hint(tmp_path, silent_host, caplog):
    started = time.monotonic()
    url = 'https://huggingface.co/timm/x/resolve/main/model.safetensors'
    with caplog.at_level('INFO'), pytest.raises(RunError) as raised:
        download([(url, str(tmp_path / 'a'))])
    assert time.monotonic() - started < 60 and 2 <= len(silent_host) <= 3
    hint = 'HF_ENDPOINT=https://hf-mirror.com before the command'
    assert hint in str(raised.value) and hint in caplog.messages[0]
    assert 'timed out' in caplog.messages[0]


def test_a_refused_connection_is_tried_twice(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(download_module, 'PAUSE', 0.001)
    monkeypatch.setenv('no_proxy', '*')
    with caplog.at_level('INFO'), pytest.raises(RunError) as raised:
        download([('http://127.0.0.1:9/file.bin', str(tmp_path / 'file.bin'))])
    assert len([line for line in caplog.messages if 'trying again' in line]) == 1
    assert 'HF_ENDPOINT' not in str(raised.value)


def test_modelscope_is_the_second_source_where_it_has_a_copy(monkeypatch):
    monkeypatch.delenv('HF_ENDPOINT', raising=False)
    url = registry.hugging_face_url('timm/vit_tiny_patch16_224.augreg', 'model.safetensors')
    assert registry.list_sources(url) == [
        url, 'https://modelscope.cn/models/timm/vit_tiny_patch16_224.augreg/resolve/master/'
        'model.safetensors']
    for other in (registry.hugging_face_url('somebody/x', 'model.safetensors'),
                  'https://example.org/timm/x/resolve/main/model.safetensors'):
        assert registry.list_sources(other) == [other]
    monkeypatch.setenv('HF_ENDPOINT', 'https://mirror.example/hf/')
    url = registry.hugging_face_url('google/vit-base-patch16-224', 'config.json')
    assert registry.list_sources(url)[1] == \
        'https://modelscope.cn/models/google/vit-base-patch16-224/resolve/master/config.json'


def test_a_source_that_fails_gives_way_to_modelscope(server, monkeypatch):
    monkeypatch.setenv('HF_ENDPOINT', f'{server.url}/gone.bin')
    monkeypatch.setattr(registry, 'MODELSCOPE', f'{server.url}/repository')
    entry = registry.Released((registry.hugging_face_url('google/x', 'model.safetensors'),),
                              (registry.hugging_face_url('google/x', 'config.json'),))
    path = registry.fetch('hf/google/x', entry)
    assert sorted(os.listdir(os.path.dirname(path))) == [
        'config.json', 'config.json.lock', 'model.safetensors', 'model.safetensors.lock']
    assert '/repository/google/x/resolve/master/config.json' in [
        path for path, _ in server.requests]


def test_folder_that_cannot_be_made(server, tmp_path):
    (tmp_path / 'file').write_text('in the way')
    with pytest.raises(UserError, match='Cannot write .*VIT_CACHE'):
        get(server, 'good.bin', tmp_path / 'file' / 'a.bin')


def test_two_at_once_fetch_once(server, tmp_path):
    results = []
    threads = [threading.Thread(target=lambda: results.append(
        get(server, 'good.bin', tmp_path / 'file.bin'))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [str(tmp_path / 'file.bin')] * 4 and len(server.requests) == 1


def test_fetch_uses_the_cache(server):
    entry = registry.Released((f'{server.url}/gone.bin', f'{server.url}/checkpoint.safetensors'))
    assert registry.cached_path('a/b', entry) is None
    path = registry.fetch('a/b', entry)
    assert path == os.path.join(os.environ['VIT_CACHE'], 'a', 'b', 'checkpoint.safetensors')
    count = len(server.requests)
    assert registry.fetch('a/b', entry) == path and len(server.requests) == count
    assert registry.cached_path('a/b', entry) == path


def test_hugging_face_from_a_mirror_with_its_config(server, monkeypatch):
    monkeypatch.setenv('HF_ENDPOINT', f'{server.url}/repository/')
    from common.weights import load_pretrained
    from ViT.vit import VisionTransformer
    model = VisionTransformer(64, 16, num_classes=7, embed_dim=48, depth=3, num_heads=4)
    report = load_pretrained(model, 'hf/google/vit-base-patch16-224')
    assert report.format == 'Hugging Face' and report.numerics['layer_norm_eps'] == 1e-12
    assert server.requests[0][0] == (
        '/repository/google/vit-base-patch16-224/resolve/main/config.json')


def test_names():
    entries = registry.list_all_released()
    for name in ('google/augreg/vit_base_patch16_224', 'timm/vit_base_patch16_224',
                 'hf/google/vit-base-patch16-224', 't2t/t2t_vit_14', 'mindcv/vit_l_16_224',
                 'google/imagenet21k/R50+ViT-B_16', 'google/sam/ViT-B_32',
                 'paddleclas/vit_large_patch32_384', 'google/augreg_in21k/vit_tiny_patch16_224',
                 'mmpretrain/vit-base-p16_3rdparty_pt-64xb64_in1k-224', 'hf/facebook/dinov2-base',
                 'meta/moco_v3/vit_small_300_epochs', 'hf/openai/clip-vit-large-patch14-336'):
        assert name in entries
    urls = [url for entry in entries.values() for url in entry.urls]
    assert all(url.startswith('https://') for url in urls)
    assert ('https://huggingface.co/timm/vit_large_patch32_384.orig_in21k_ft_in1k/resolve/main/'
            'model.safetensors') in urls
    assert ('https://storage.googleapis.com/vit_models/augreg/L_16-i21k-300ep-lr_0.001-aug_medium1'
            '-wd_0.1-do_0.1-sd_0.1--imagenet2012-steps_20k-lr_0.01-res_384.npz') in urls
    assert entries['mmpretrain/vit-base-p16_3rdparty_pt-64xb64_in1k-224'].sha256 == '02284250'
    assert len(entries) == 2 * 13 + 6 + 15 + 11 + 7 + 3 + 7 + 14 + 49 + 33 + 32
    plain, restricted = (entries[f'timm/vit_base_patch1{name}'] for name in (
        '4_reg4_dinov2.lvd142m', '6_dinov3.lvd1689m'))
    assert plain.extra_urls[0].endswith('dinov2.lvd142m/resolve/main/config.json')
    assert entries['meta/deit/deit_tiny_patch16_224'].sha256 == 'a1311bcf'
    assert not plain.licence and 'DINOv3 License' in restricted.licence


def test_a_licence_that_restricts_use_is_said_before_the_download(server, monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger('common'), 'propagate', True)
    entry = registry.Released((f'{server.url}/checkpoint.safetensors',), licence='no dancing')
    for words in ('a/b has a licence that restricts use: no dancing', ''):
        caplog.clear()
        registry.fetch('a/b', entry)
        assert words in caplog.text and bool(caplog.text) == bool(words)


def test_unknown_name_gets_the_nearest():
    with pytest.raises(UserError, match='Did you mean t2t/t2t_vit_14'):
        registry.resolve('t2t/t2t_vit14')
    with pytest.raises(UserError, match='weights.py list'):
        registry.resolve('qqqqqqqqqqqqqqq')
    with pytest.raises(UserError, match='empty'):
        registry.resolve('')


@pytest.mark.parametrize('system, variable, expected', [
    ('linux', 'XDG_CACHE_HOME', os.path.join('/x', 'vit-paddle')),
    ('win32', 'LOCALAPPDATA', os.path.join('/x', 'vit-paddle')),
    ('darwin', 'UNUSED', os.path.join('Library', 'Caches', 'vit-paddle'))])
def test_cache_folder(monkeypatch, system, variable, expected):
    monkeypatch.delenv('VIT_CACHE', raising=False)
    monkeypatch.setenv(variable, '/x')
    monkeypatch.setattr(cache.sys, 'platform', system)
    assert cache.cache_folder().endswith(expected)


@pytest.mark.parametrize('folder', ['ViT', 'T2T_ViT'])
@pytest.mark.runs
def test_weights_script(folder, tmp_path):
    def run(*arguments):
        return subprocess.run([sys.executable, os.path.join(ROOT, folder, 'weights.py'),
                               *arguments], capture_output=True, text=True,
                              env={**os.environ, 'VIT_CACHE': str(tmp_path)})
    listed = run('list')
    assert listed.returncode == 0, listed.stderr
    names = [line.split()[0] for line in listed.stdout.splitlines()]
    assert ('t2t/t2t_vit_14' in names) == (folder == 'T2T_ViT')
    assert ('timm/vit_base_patch16_224' in names) == (folder == 'ViT')
    missing = run('path', names[0])
    assert missing.returncode == 2 and 'not in the cache' in missing.stderr
    wrong = run('fetch', names[0] + 'x')
    assert wrong.returncode == 2 and f'Did you mean {names[0]}?' in wrong.stderr
    assert 'Traceback' not in wrong.stderr
