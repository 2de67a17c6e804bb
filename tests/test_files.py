"""Files are opened and written without harm to others."""

import os

import pytest

from common.errors import UserError
from common.files import (
    note_reads,
    open_own,
    open_regular,
    refuse_overwriting,
    replace_file,
    write_new,
)


def write(path, content, how=replace_file):
    with how(str(path)) as file:
        file.write(content)


def test_a_file_is_whole_or_as_it_was(tmp_path):
    write(tmp_path / 'a', b'old')
    with pytest.raises(ValueError), replace_file(str(tmp_path / 'a')) as file:
        file.write(b'half')
        raise ValueError
    assert (tmp_path / 'a').read_bytes() == b'old' and os.listdir(tmp_path) == ['a']
    write(tmp_path / 'a', b'new')
    assert (tmp_path / 'a').read_bytes() == b'new' and os.listdir(tmp_path) == ['a']


def test_links_are_replaced_and_not_followed(tmp_path):
    (tmp_path / 'precious').write_bytes(b'precious')
    for name in ('a', '.a.writing'):
        (tmp_path / name).symlink_to(tmp_path / 'precious')
    write(tmp_path / 'a', b'new')
    assert not (tmp_path / 'a').is_symlink() and (tmp_path / 'a').read_bytes() == b'new'
    (tmp_path / 'b').symlink_to(tmp_path / 'precious')
    for flags in (os.O_RDWR, os.O_WRONLY | os.O_APPEND):
        with pytest.raises(OSError, match='a link, which is not followed'):
            open_own(str(tmp_path / 'b'), flags)
    os.mkfifo(tmp_path / 'pipe')
    with pytest.raises(OSError, match='not a regular file'):
        open_own(str(tmp_path / 'pipe'), os.O_RDWR)
    with pytest.raises(FileExistsError):
        write(tmp_path / 'b', b'new', write_new)
    assert (tmp_path / 'precious').read_bytes() == b'precious'


def test_what_is_read_is_known_by_every_name(tmp_path):
    for name in ('a', 'other'):
        (tmp_path / name).write_bytes(b'x')
    os.link(tmp_path / 'a', tmp_path / 'hard')
    (tmp_path / 'soft').symlink_to('a')
    with note_reads() as read:
        open_regular(tmp_path / 'soft').close()
    open_regular(tmp_path / 'other').close()
    for name in ('a', 'hard', 'soft'):
        with pytest.raises(UserError, match=f'{name} is read by this command'):
            refuse_overwriting(str(tmp_path / name), read)
    refuse_overwriting(str(tmp_path / 'other'), read)
    refuse_overwriting(str(tmp_path / 'nowhere'), read)
