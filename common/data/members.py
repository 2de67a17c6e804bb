"""Members of .zip and .tar files: where their bytes lie, and reading them in place.

Archives come from anywhere, so nothing in them is believed before it is checked,
and nothing is ever unpacked: a name is only a name.
"""

import contextlib
import io
import os
import re
import stat
import struct
import sys
import tarfile
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from tqdm import tqdm

from common.data.images import ImageError, show_path
from common.errors import UserError
from common.files import open_regular
from common.terminal import is_terminal

MAX_MEMBER_BYTES = 512 << 20    # more than Pillow's limit of pixels takes uncompressed
MAX_MEMBER_NAME = 4096          # bytes; no system's paths are longer
MAX_OPEN_FILES = 64             # of one reader in one process
STORED, DEFLATED = 0, 8         # methods of zip members that are read

COMPRESSED = {b'\x1f\x8b': 'gzip', b'BZh': 'bzip2', b'\xfd7zXZ': 'xz', b'\x28\xb5\x2f\xfd': 'zstd',
              b'7z\xbc\xaf': '7-Zip', b'Rar!': 'RAR'}

ZIP_END = struct.Struct('<4s4H2IH')
ZIP64_LOCATOR = struct.Struct('<4sIQI')
ZIP64_END = struct.Struct('<4sQ2H2I4Q')
ZIP_ENTRY = struct.Struct('<4s6H3I5H2I')
ZIP_LOCAL = struct.Struct('<4s5H3I2H')
ZIP_UTF8, ZIP_ENCRYPTED = 1 << 11, 1 << 0 | 1 << 6
IN_EXTRA = 0xFFFFFFFF           # the real number is in the entry's zip64 field


class Member(NamedTuple):
    """A file or folder in an archive.

    offset: of its bytes in a .tar, of its local header in a .zip. size: bytes when unpacked.
    packed, crc, method, encrypted: of a .zip only.
    """

    name: bytes
    is_folder: bool
    offset: int
    size: int
    packed: int = 0
    crc: int = 0
    method: int = STORED
    encrypted: bool = False


def recognise_archive(path: str) -> str:
    """Return "zip" or "tar" by a file's content. Raises UserError saying what to do otherwise."""
    try:
        with open_regular(path) as file:
            head = file.read(512)
            is_zip = head.startswith((b'PK\x03\x04', b'PK\x05\x06')) or \
                _find_zip_end(file) is not None
    except OSError as error:
        raise UserError(f'Cannot read {show_path(path)}: {error.strerror}.') from None
    for mark, name in COMPRESSED.items():
        if head.startswith(mark):
            raise UserError(
                f'{show_path(path)} is compressed as a whole ({name}), so that no picture in it '
                'can be read by itself. Decompress it once to a .tar (gunzip FILE.tar.gz, say), '
                'or pack a .zip; pictures hardly grow by that.')
    if head[257:262] == b'ustar':       # a .tar may end with a .zip file in it
        return 'tar'
    if is_zip:
        return 'zip'
    if path.lower().endswith('.tar'):
        return 'tar'
    raise UserError(f'{show_path(path)} is neither a .zip nor a .tar file.')


def list_members(path: str, kind: str, bar: tqdm | None = None) -> Iterator[Member]:
    """Yield the members of an archive in its order, with a progress bar on a terminal.

    bar: of the bytes of several archives. Raises UserError naming archive and member for one
    that is damaged or not what data sets are made of: a link, a name that leaves the
    archive's root.
    """
    lister = _list_zip if kind == 'zip' else _list_tar
    with bar_of([path]) if bar is None else contextlib.nullcontext(bar) as bar:
        for member in lister(path, bar, os.path.getsize(path)):
            _check_name(path, member.name)
            yield member


def bar_of(paths: list[str]) -> tqdm:
    """Return a progress bar of the bytes of files, shown on a terminal only."""
    name = os.path.basename(paths[0]) + (f' and {len(paths) - 1} more' if paths[1:] else '')
    return tqdm(total=sum(map(os.path.getsize, paths)), unit='B', unit_scale=True,
                disable=not is_terminal(sys.stderr), desc=f'Indexing {show_path(name)}')


def check_picture(archive: str, member: Member) -> None:
    """Raise UserError if a member cannot be read as a picture: too large, encrypted, ..."""
    where = describe_member(archive, member.name)
    if member.size > MAX_MEMBER_BYTES:
        raise UserError(f'{where}: {member.size:,} bytes are too many for a picture (at most '
                        f'{MAX_MEMBER_BYTES:,}).')
    if member.encrypted:
        raise UserError(f'{where}: encrypted. Pack the archive without a password.')
    if member.method not in (STORED, DEFLATED):
        raise UserError(f'{where}: compressed by method {member.method}; only stored and deflated '
                        'members are read. Pack the archive anew with zip.')
    if member.method == STORED and member.packed not in (0, member.size) or \
            member.size > 1100 * member.packed + 1100 and member.method == DEFLATED:
        raise UserError(f'{where}: announces {member.size:,} bytes, which the {member.packed:,} '
                        'in the archive cannot hold.')


def describe_member(archive: str | bytes, name: bytes) -> str:
    """Return archive and member, printable, for messages."""
    return f'{show_path(archive)}: {show_path(name)}'


class MemberFiles:
    """Reads parts of several files, a few of them open at a time; safe in threads and forks."""

    def __init__(self, paths: list[str]):
        self.paths = paths
        self._open: dict[int, _Descriptor] = {}

    def read(self, number: int, offset: int, size: int) -> bytes:
        """Return `size` bytes of file `number`, or what there is. Raises OSError."""
        file = self._open.get(number)
        if file is None:
            while len(self._open) >= MAX_OPEN_FILES:
                self._open.pop(next(iter(self._open)), None)
            file = self._open[number] = _Descriptor(self.paths[number])
        return file.read(offset, size)


class _Descriptor:
    """A file open for reading at any place; closed when nobody uses it any more."""

    def __init__(self, path):
        self.path = path
        self.number = os.open(path, os.O_RDONLY | getattr(os, 'O_BINARY', 0))

    def read(self, offset, size):
        if not hasattr(os, 'pread'):            # Windows
            with open(self.path, 'rb') as file:
                file.seek(offset)
                return file.read(size)
        data = os.pread(self.number, size, offset)
        while len(data) < size:
            more = os.pread(self.number, size - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def __del__(self):
        if hasattr(self, 'number'):
            os.close(self.number)


def read_tar_member(files: MemberFiles, number: int, offset: int, size: int, where: str) -> bytes:
    """Return a member's bytes. where: what an ImageError starts with."""
    try:
        data = files.read(number, offset, size)
    except OSError as error:
        raise ImageError(f'{where}: cannot be read: {error.strerror}.') from None
    if len(data) != size:
        raise ImageError(f'{where}: the archive ends in the middle of it. It is cut short, or '
                         'changed since this run began.')
    return data


def read_zip_member(files: MemberFiles, member: Member, where: str) -> bytes:
    """Return a member's bytes, unpacked and their CRC-32 compared. Raises ImageError."""
    ahead = ZIP_LOCAL.size + len(member.name) + 64      # of the extra fields that most files have
    packed = read_tar_member(files, 0, member.offset, ZIP_LOCAL.size, where) \
        if member.packed == 0 else _read_up_to(files, member, ahead, where)
    signature, *_, name_size, extra_size = ZIP_LOCAL.unpack_from(packed)
    if signature != b'PK\x03\x04':
        raise ImageError(f'{where}: the archive is damaged, or changed since this run began.')
    start = ZIP_LOCAL.size + name_size + extra_size
    if len(packed) < start + member.packed:
        packed = read_tar_member(files, 0, member.offset, start + member.packed, where)
    data = packed[start:start + member.packed]
    if member.method == DEFLATED:
        try:
            data = zlib.decompressobj(-15).decompress(data, member.size + 1)
        except zlib.error as error:
            raise ImageError(f'{where}: damaged ({error}).') from None
    if len(data) != member.size or zlib.crc32(data) != member.crc:
        raise ImageError(f'{where}: damaged: its size or checksum is not what the archive says.')
    return data


def _read_up_to(files, member, ahead, where):
    """Return the local header and the bytes behind it in one read, fewer at the file's end."""
    try:
        data = files.read(0, member.offset, ahead + member.packed)
    except OSError as error:
        raise ImageError(f'{where}: cannot be read: {error.strerror}.') from None
    if len(data) < ZIP_LOCAL.size:
        raise ImageError(f'{where}: the archive ends in the middle of it.')
    return data


def _check_name(archive, name):
    where = describe_member(archive, name[:200])
    if len(name) > MAX_MEMBER_NAME or b'\0' in name:
        raise UserError(f'{where}: no file can have this name.')
    parts = name.replace(b'\\', b'/').split(b'/')
    if name[:1] in (b'/', b'\\') or b'..' in parts or re.match(rb'[A-Za-z]:[/\\]', name):
        raise UserError(f'{where}: the name leaves the archive\'s root. Pack the folder anew, '
                        'with relative names.')


def _clean_name(name):
    """Return a name without "./" and doubled or trailing slashes."""
    if name.startswith(b'/') or b'/' not in name:
        return name
    return b'/'.join(part for part in name.split(b'/') if part not in (b'', b'.'))


def _list_tar(path, bar, size):
    try:
        with tarfile.open(path, 'r:', errorlevel=2) as archive:
            end, start = 0, bar.n
            while (info := archive.next()) is not None:
                archive.members.clear()         # tarfile keeps all: 1 kB each
                name = os.fsencode(info.name)
                if info.size < 0 or archive.offset <= end:
                    raise tarfile.TarError(f'the size of {show_path(name[:200])} is wrong')
                end = archive.offset
                if end > size:
                    raise tarfile.TarError(f'it ends in the middle of {show_path(name[:200])}')
                if not info.isdir() and (not info.isreg() or info.issparse()):
                    _refuse_special(path, name, info)
                yield Member(_clean_name(name), info.isdir(), info.offset_data, info.size)
                bar.update(start + end - bar.n)
            archive.fileobj.seek(end)
            if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.TarError('its end is missing')
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, RecursionError,
            MemoryError) as error:
        reason = getattr(error, 'strerror', None) or error
        raise UserError(f'{show_path(path)} is not a whole .tar file: {reason}. Copy or make it '
                        'again.') from None


def _refuse_special(path, name, info):
    where = describe_member(path, name[:200])
    if info.issym() or info.islnk():
        raise UserError(f'{where}: a link; links are not followed. Pack the archive with the '
                        'files themselves (tar --dereference --hard-dereference).')
    raise UserError(f'{where}: neither a plain file nor a folder.')


def _find_zip_end(file):
    """Return (offset, bytes) of the end record of an open file; None if there is none."""
    size = file.seek(0, io.SEEK_END)
    start = max(0, size - ZIP_END.size - 0xFFFF)
    file.seek(start)
    tail = file.read()
    place = tail.rfind(b'PK\x05\x06')
    if place < 0 or len(tail) - place < ZIP_END.size:
        return None
    return start + place, tail[place:place + ZIP_END.size]


def _list_zip(path, bar, size):
    try:
        with open(path, 'rb') as file:
            count, length, place, shift = _read_zip_end(file)
            file.seek(place)
            start = bar.n
            for _ in range(count):
                member, used = _read_zip_entry(path, file, shift)
                length -= used
                if length < 0 or member.offset + member.packed > size:
                    raise ValueError(f'{show_path(member.name[:200])} lies outside it')
                yield member
                bar.update(size // count)
            bar.update(start + size - bar.n)
    except (OSError, ValueError, struct.error) as error:
        reason = getattr(error, 'strerror', None) or error
        raise UserError(f'{show_path(path)} is not a whole .zip file: {reason}. Copy or make it '
                        'again.') from None


def _read_zip_end(file):
    """Return (members, bytes, offset) of the list of members, and what its offsets lack.

    The last is not 0 where something was put in front of the archive.
    """
    found = _find_zip_end(file)
    if found is None:
        raise ValueError('its list of members is missing, which stands at the end')
    place, record = found
    _, disk, first_disk, _, count, length, offset, _ = ZIP_END.unpack(record)
    if place >= ZIP64_LOCATOR.size:
        file.seek(place - ZIP64_LOCATOR.size)
        signature, _, end, _ = ZIP64_LOCATOR.unpack(file.read(ZIP64_LOCATOR.size))
        if signature == b'PK\x06\x07':
            place -= ZIP64_LOCATOR.size + ZIP64_END.size
            for candidate in (end, place):
                file.seek(candidate)
                record = file.read(ZIP64_END.size)
                if record[:4] == b'PK\x06\x06' and len(record) == ZIP64_END.size:
                    break
            else:
                raise ValueError('its zip64 end record is missing')
            place = candidate
            *_, disk, first_disk, _, count, length, offset = ZIP64_END.unpack(record)
    start = place - length
    if disk or first_disk or start < 0 or offset > start or count * ZIP_ENTRY.size > length:
        raise ValueError('its list of members does not fit into it')
    return count, length, start, start - offset


def _read_zip_entry(path, file, shift):
    """Return (Member, bytes read) of the next entry in the list of members."""
    (signature, made_by, _, flags, method, _, _, crc, packed, size, name_size, extra_size,
     comment_size, _, _, attributes, offset) = ZIP_ENTRY.unpack(file.read(ZIP_ENTRY.size))
    if signature != b'PK\x01\x02':
        raise ValueError('its list of members is damaged')
    name = file.read(name_size)
    extra = file.read(extra_size)
    file.seek(comment_size, io.SEEK_CUR)
    if len(name) != name_size or len(extra) != extra_size:
        raise ValueError('its list of members is cut short')
    if IN_EXTRA in (size, packed, offset):
        size, packed, offset = _read_zip64(extra, size, packed, offset)
    if not flags & ZIP_UTF8:
        name = _to_utf8(name)
    mode = attributes >> 16
    if made_by >> 8 == 3 and stat.S_ISLNK(mode):
        raise UserError(f'{describe_member(path, name[:200])}: a link; links are not followed. '
                        'Pack the archive with the files themselves (zip without -y).')
    member = Member(_clean_name(name), name.endswith(b'/'), offset + shift, size, packed, crc,
                    method, bool(flags & ZIP_ENCRYPTED))
    return member, ZIP_ENTRY.size + name_size + extra_size + comment_size


def _read_zip64(extra, *numbers):
    """Return numbers with those that did not fit replaced from the zip64 field."""
    place = 0
    while place + 4 <= len(extra):
        kind, length = struct.unpack_from('<2H', extra, place)
        if kind == 1:
            field = extra[place + 4:place + 4 + length]
            large = iter(struct.unpack(f'<{len(field) // 8}Q', field[:len(field) // 8 * 8]))
            try:
                return [next(large) if n == IN_EXTRA else n for n in numbers]
            except (StopIteration, RuntimeError):
                break
        place += 4 + length
    raise ValueError('a zip64 field is missing')


def _to_utf8(name):
    """Return a name that is not marked as UTF-8 as UTF-8; without the mark it means code page 437,
    but most programs write UTF-8 all the same."""
    try:
        name.decode('utf-8')
        return name
    except UnicodeDecodeError:
        return name.decode('cp437').encode('utf-8')
