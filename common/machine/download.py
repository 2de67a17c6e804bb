"""Downloads a file whole or not at all, resuming what an earlier try left."""

import contextlib
import hashlib
import http.client
import json
import logging
import os
import re
import socket
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable

from tqdm import tqdm

from common.errors import RunError, UserError
from common.machine.cache import locked
from common.machine.deadline import Deadline
from common.terminal import is_terminal

CHUNK = 1 << 20                 # bytes
CONNECT_SECONDS = 8             # for a connection, whatever number of addresses a name has
TIMEOUT = 30                    # seconds without a byte
TRIES = 5                       # for each address
TRIES_TO_CONNECT = 2            # where no connection is made at all
LEAST_RATE = 1000               # bytes a second over RATE_SECONDS; less is no connection
RATE_SECONDS = 30
TOO_SLOW = f'fewer than {LEAST_RATE:,} bytes a second arrive'
PAUSE = 1.0                     # seconds before the second try; doubles with each
HUGGING_FACE = 'https://huggingface.co'
MIRROR_HINT = ('Where Hugging Face cannot be reached, as in mainland China, '
               'HF_ENDPOINT=https://hf-mirror.com before the command takes a mirror of it.')

logger = logging.getLogger(__name__)


class DownloadError(Exception):
    """One address does not deliver the file. may_retry: another try could. reached: it answers."""

    def __init__(self, reason: str, may_retry: bool, reached: bool = True):
        super().__init__(reason)
        self.may_retry = may_retry
        self.reached = reached


def download(targets: list[tuple[str, str]], sha256: str = '',
             check: Callable[[str], object] | None = None,
             remedy: str = 'give its path instead of the name',
             place: str = 'VIT_CACHE names another folder for downloads.') -> str:
    """Fetch a file from the first address that delivers it; return its path.

    targets: [(address, path)]. The bytes go to `path`.part, which a later call
    continues, and are renamed when complete: the length is the server's, the
    hash equals `sha256` (hexadecimal, or its first digits) and the one that
    Hugging Face announces, and check(path), if given, raises no UserError.
    Several processes may ask for one file; one of them fetches it. For messages: remedy
    is what the user does with a file fetched by other means, place what chooses the folder.
    Raises RunError listing each address and why it failed, UserError where the
    folder cannot be written.
    """
    failures = []
    for url, path in targets:
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with locked(f'{path}.lock'):
                if not os.path.exists(path):
                    _fetch_with_retries(url, path, sha256, check)
                return path
        except DownloadError as error:      # noqa: PERF203 (each address is its own try)
            failures.append(f'{url}: {error}')
            hint = f' {MIRROR_HINT}' if is_unreachable_hub(url, error) else ''
            logger.info('Cannot download %s: %s.%s', url, error, hint)
        except OSError as error:
            raise UserError(f'Cannot write {path}: {error.strerror or error}. {place}') from None
    mirror = f' {MIRROR_HINT}' if any(url.startswith(f'{HUGGING_FACE}/') for url, _ in targets) \
        else ''
    raise RunError('The download failed. ' + '; '.join(failures) + '.\nFetch the file by other '
                   f'means and {remedy}.{mirror}')


def is_unreachable_hub(url: str, error: DownloadError) -> bool:
    """Tell whether Hugging Face itself, and no mirror of it, could not be connected to."""
    return url.startswith(f'{HUGGING_FACE}/') and not error.reached


def _fetch_with_retries(url, path, sha256, check):
    for attempt in range(TRIES):
        try:
            announced = _fetch(url, f'{path}.part')
            _verify(f'{path}.part', sha256, announced, check)
            os.replace(f'{path}.part', path)
            _remove(f'{path}.part.json')
            return
        except DownloadError as error:      # noqa: PERF203 (each address is its own try)
            tries = TRIES if error.reached else min(TRIES, TRIES_TO_CONNECT)
            if not error.may_retry or attempt >= tries - 1:
                raise
            logger.info('%s: %s; trying again.', url, error)
            time.sleep(PAUSE * 2 ** attempt)


def _fetch(url, part):
    """Fill the file `part`; return the SHA-256 that the server announced, '' if none.

    Raises DownloadError; what has arrived stays for the next try.
    """
    start = _resumable_size(url, part)
    request = urllib.request.Request(url, headers={'User-Agent': 'vit-paddle',
                                                   'Accept-Encoding': 'identity'})
    if start:
        request.add_header('Range', f'bytes={start}-')
        request.add_header('If-Range', _read_note(part)['validator'])
    redirects = _Redirects()
    with Deadline(CONNECT_SECONDS + 2 * RATE_SECONDS) as deadline:
        try:
            opener = urllib.request.build_opener(
                redirects, _HttpHandler(deadline), _HttpsHandler(deadline))
            with opener.open(request, timeout=TIMEOUT) as response:
                start, total = _read_range(response, start)
                _write_note(part, url, response.headers)
                announced = redirects.sha256 or _read_sha256(response.headers)
                size = _save(response, part, start, total, url, deadline)
        except urllib.error.HTTPError as error:
            if error.code == 416:                   # the part is as long as the file, or longer
                _remove(part)
            raise DownloadError(f'the server answers {error.code} {error.reason}',
                                error.code in (408, 416, 429) or error.code >= 500) from None
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError,
                ssl.SSLError, ValueError) as error:
            raise _explain(error, deadline) from None
    if deadline.is_over:
        raise DownloadError(TOO_SLOW, True)
    if total is not None and size != total:
        raise DownloadError(f'{size:,} of {total:,} bytes arrived', True)
    return announced


def _explain(error, deadline):
    """Return the DownloadError for a connection that has failed."""
    if deadline.is_over:
        return DownloadError(TOO_SLOW, True)
    reason = getattr(error, 'reason', error)
    # What goes wrong before a request is sent comes as URLError; a host that does not answer
    # at all was waited for long enough.
    reached = not isinstance(error, urllib.error.URLError)
    return DownloadError(f'the connection failed ({reason})',
                         reached or not isinstance(reason, TimeoutError), reached)


def _save(response, part, start, total, url, deadline):
    """Write what the response holds behind the first `start` bytes; return the size then."""
    name = urllib.parse.unquote(url.rsplit('/', 1)[-1])
    with open(part, 'r+b' if start else 'wb') as file, tqdm(
            desc=name, total=total, initial=start, unit='B', unit_scale=True,
            disable=not is_terminal(sys.stderr)) as bar:
        file.truncate(start)
        file.seek(start)
        since, before = time.monotonic(), start
        deadline.prolong(2 * RATE_SECONDS)
        while True:
            if (seconds := time.monotonic() - since) > RATE_SECONDS:
                if file.tell() - before < LEAST_RATE * seconds:
                    raise DownloadError(TOO_SLOW, True)
                since, before = time.monotonic(), file.tell()
                deadline.prolong(2 * RATE_SECONDS)
            try:
                chunk = response.read1(CHUNK)       # what is there; read() waits for all of it
            except http.client.IncompleteRead as error:
                file.write(error.partial)
                return file.tell()
            except (ConnectionError, TimeoutError, ssl.SSLError):
                return file.tell()
            if not chunk:
                return file.tell()
            if total is not None and file.tell() + len(chunk) > total:
                raise DownloadError('more bytes arrived than were announced', True)
            file.write(chunk)
            bar.update(len(chunk))


def _read_range(response, start):
    """Return (first byte that the response holds, size of the whole file or None)."""
    length = response.headers.get('Content-Length')
    if response.status == 206:
        match = re.fullmatch(r'bytes (\d+)-\d+/(\d+|\*)',
                             response.headers.get('Content-Range', ''))
        if not match or int(match[1]) != start:
            raise DownloadError('the server sends another part than asked for', True)
        return start, int(match[2]) if match[2] != '*' else None
    return 0, int(length) if length and length.isdigit() else None


def _verify(path, sha256, announced, check):
    """Raise DownloadError, and remove the file, if it is not what it should be."""
    expected = [digits for digits in (sha256, announced) if digits]
    if expected:
        actual = _hash(path)
        for digits in expected:
            if not actual.startswith(digits.lower()):
                _discard(path)
                raise DownloadError(f'its SHA-256 is {actual}, not {digits}', True)
    if check is not None:
        try:
            check(path)
        except UserError as error:
            _discard(path)
            raise DownloadError(str(error), False) from None


def _discard(part):
    _remove(part)
    _remove(f'{part}.json')


def _hash(path):
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def connect(address: tuple[str, int], timeout: object = None,
            source_address: tuple[str, int] | None = None) -> socket.socket:
    """Return a connection that is made within CONNECT_SECONDS, as socket.create_connection does.

    That one waits as long for each address that the name has. timeout: not used.
    """
    deadline = time.monotonic() + CONNECT_SECONDS
    error: OSError = TimeoutError('timed out')
    for *_, place in socket.getaddrinfo(*address, type=socket.SOCK_STREAM):
        left = deadline - time.monotonic()
        if left <= 0:
            break
        try:
            return socket.create_connection((str(place[0]), int(place[1])),
                                            min(left, CONNECT_SECONDS / 2), source_address)
        except OSError as failure:
            error = failure
    raise error


class _Watched:
    """Of a connection: made by `connect`, and shut by its deadline."""

    deadline: Deadline

    def connect(self):
        self._create_connection = self._open
        super().connect()
        self.sock.settimeout(TIMEOUT)

    def _open(self, *arguments):
        connection = connect(*arguments)
        self.deadline.watch(connection)
        return connection


class _HttpConnection(_Watched, http.client.HTTPConnection):
    pass


class _HttpsConnection(_Watched, http.client.HTTPSConnection):
    pass


def _make_watched(kind, deadline):
    def make(*arguments, **options):
        connection = kind(*arguments, **options)
        connection.deadline = deadline
        return connection
    return make


class _HttpHandler(urllib.request.HTTPHandler):
    def __init__(self, deadline):
        super().__init__()
        self.deadline = deadline

    def http_open(self, request):
        return self.do_open(_make_watched(_HttpConnection, self.deadline), request)


class _HttpsHandler(urllib.request.HTTPSHandler):
    def __init__(self, deadline):
        super().__init__()
        self.deadline = deadline

    def https_open(self, request):
        return self.do_open(_make_watched(_HttpsConnection, self.deadline), request)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but not from https to http; reads the hash that Hugging Face adds."""

    sha256 = ''

    def redirect_request(self, request, fp, code, message, headers, new_url):
        if request.full_url.startswith('https:') and not new_url.startswith('https:'):
            raise DownloadError(f'it redirects to {new_url[:100]}', False)
        self.sha256 = self.sha256 or _read_sha256(headers)
        return super().redirect_request(request, fp, code, message, headers, new_url)


def _read_sha256(headers):
    tag = headers.get('X-Linked-ETag', '').strip('"')
    return tag if re.fullmatch('[0-9a-f]{64}', tag) else ''


def _resumable_size(url, part):
    """Return how many bytes of `part` belong to this address; 0: start anew."""
    note = _read_note(part)
    if note.get('url') != url or not note.get('validator') or not os.path.exists(part):
        return 0
    return os.path.getsize(part)


def _write_note(part, url, headers):
    """Note what identifies the version of the file that is being fetched."""
    validator = headers.get('ETag', '')
    if not validator or validator.startswith('W/'):
        validator = headers.get('Last-Modified', '')
    with open(f'{part}.json', 'w', encoding='utf-8') as file:
        json.dump({'url': url, 'validator': validator}, file)


def _read_note(part):
    try:
        with open(f'{part}.json', encoding='utf-8') as file:
            note = json.load(file)
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def _remove(path):
    with contextlib.suppress(FileNotFoundError):
        os.remove(path)
