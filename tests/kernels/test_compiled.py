"""C sources are compiled once; where they cannot be, the reason is told."""

import os
import shutil
import stat
import subprocess
import sys

import pytest

from common.kernels import compiled
from tests.support.paths import ROOT

needs_compiler = pytest.mark.skipif(not shutil.which('cc'), reason='needs a C compiler')


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A C source, and an empty cache."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    path = tmp_path / 'seven.c'
    path.write_text('int seven(void) { return 7; }')
    return path


def list_cache(tmp_path):
    return sorted((tmp_path / 'cache' / 'vit-paddle' / 'kernels').glob('*.so'))


@needs_compiler
def test_compiled_once(source, monkeypatch, tmp_path):
    assert compiled.load_library(source).seven() == 7
    made = list_cache(tmp_path)
    assert [path.name[:6] + path.suffix for path in made] == ['seven-.so']
    assert stat.S_IMODE(made[0].parent.stat().st_mode) == 0o700
    monkeypatch.setattr(compiled.subprocess, 'run', None)
    assert compiled.load_library(source).seven() == 7


@needs_compiler
def test_another_source_or_processor_is_another_library(source, monkeypatch, tmp_path):
    compiled.load_library(source)
    source.write_text('int seven(void) { return 8; }')
    assert compiled.load_library(source).seven() == 8
    monkeypatch.setattr(compiled, 'read_cpu', lambda: ('', set()))
    assert compiled.load_library(source).seven() == 8
    assert len(list_cache(tmp_path)) == 3


def copy_source(command, **_):
    """Stand in for a compiler whose results cannot be loaded."""
    shutil.copy(*(path for path in command if str(path).endswith(('.c', '.so'))))


@pytest.mark.parametrize('what, reason', [
    ('off', 'turned off by VIT_COMPILED=0'), ('no compiler', 'no-such-compiler'),
    ('broken source', 'cc: .*seven.c'), ('slow compiler', 'timed out'), ('no cache', 'file'),
    ('no library', 'seven-.*.so')])
@needs_compiler
def test_the_reason_is_told(source, monkeypatch, tmp_path, what, reason):
    if what == 'off':
        monkeypatch.setenv(compiled.SWITCH, '0')
    elif what == 'no compiler':
        monkeypatch.setattr(compiled, 'COMPILE', ('no-such-compiler',))
    elif what == 'broken source':
        source.write_text('int main(')
    elif what == 'slow compiler':
        monkeypatch.setattr(compiled, 'COMPILE_SECONDS', 1e-4)
    elif what == 'no cache':
        (tmp_path / 'file').touch()
        monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
    else:
        monkeypatch.setattr(compiled.subprocess, 'run', copy_source)
    with pytest.raises(compiled.LibraryError, match=reason):
        compiled.load_library(source)
    if what == 'no library':
        monkeypatch.undo()
        monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
        assert compiled.load_library(source).seven() == 7       # nothing of it was kept


@needs_compiler
def test_a_library_is_whole_on_the_disk_before_it_has_its_name(source, monkeypatch, tmp_path):
    events = []
    monkeypatch.setattr(compiled.os, 'fsync', lambda descriptor: events.append(
        ('sync', os.path.basename(os.readlink(f'/proc/self/fd/{descriptor}')))))
    replace = os.replace
    monkeypatch.setattr(compiled.os, 'replace', lambda made, name: events.append(
        ('name', os.path.basename(name))) or replace(made, name))
    compiled.load_library(source)
    name = list_cache(tmp_path)[0].name
    assert events == [('sync', name), ('sync', f'{name}.sha256'),
                      ('name', name), ('name', f'{name}.sha256')]


def damage(library, how):
    content = library.read_bytes()
    library.unlink()
    if how == 'a link':
        library.with_name('elsewhere').write_bytes(content)
        library.symlink_to('elsewhere')
        return
    library.write_bytes({'empty': b'', 'cut': content[:len(content) // 3],
                         'flipped': content[:-9] + b'x' + content[-8:]}.get(how, content))
    if how == 'others may write':
        library.chmod(0o666)
    if how == 'no hash':
        library.with_name(f'{library.name}.sha256').unlink()


@needs_compiler
@pytest.mark.parametrize('how', [
    'empty', 'cut', 'flipped', 'a link', 'others may write', 'no hash'])
@pytest.mark.runs
def test_a_library_that_is_not_as_it_was_made_is_made_again(source, tmp_path, how):
    """In a process of its own: a library that is cut short ends it with SIGBUS."""
    assert run_seven(source) == 7
    library, = list_cache(tmp_path)
    damage(library, how)
    assert run_seven(source) == 7
    assert stat.S_ISREG(library.lstat().st_mode) and stat.S_IMODE(library.stat().st_mode) == 0o600
    made = library.stat().st_mtime_ns
    assert run_seven(source) == 7 and library.stat().st_mtime_ns == made


def run_seven(source):
    code = ('import sys\nfrom common.kernels.compiled import load_library\n'
            'sys.exit(load_library(sys.argv[1]).seven())')
    return subprocess.run([sys.executable, '-c', code, str(source)], cwd=ROOT).returncode


@needs_compiler
@pytest.mark.parametrize('how', ['others may write', 'a link', "another user's"])
def test_a_folder_that_others_may_write_is_not_used(source, monkeypatch, tmp_path, how):
    folder = tmp_path / 'cache' / 'vit-paddle' / 'kernels'
    assert compiled.load_library(source).seven() == 7
    if how == 'a link':
        folder.rename(tmp_path / 'elsewhere')
        folder.symlink_to(tmp_path / 'elsewhere')
    elif how == 'others may write':
        folder.chmod(0o777)
    else:
        monkeypatch.setattr(compiled.os, 'getuid', lambda: 4321)
        monkeypatch.setattr(compiled.os, 'lstat', lambda path: os.stat_result(
            (stat.S_IFDIR | 0o700, 0, 0, 0, 1234, 0, 0, 0, 0, 0)))
    monkeypatch.setattr(compiled.ctypes, 'CDLL', None)
    with pytest.raises(compiled.LibraryError, match='others may write there'):
        compiled.load_library(source)


@needs_compiler
def test_without_a_home_folder_there_are_no_libraries(source, monkeypatch, tmp_path, caplog):
    monkeypatch.delenv('XDG_CACHE_HOME')
    monkeypatch.delenv('VIT_CACHE', raising=False)
    monkeypatch.setattr(compiled.os.path, 'expanduser', lambda path: path)
    monkeypatch.chdir(tmp_path)
    with caplog.at_level('INFO'):
        assert compiled.load_kernels(source, 'sevens', {}) is None
    assert 'Kernels for sevens: none (there is no home folder' in caplog.text
    assert not (tmp_path / '~').exists()
    monkeypatch.setenv('XDG_CACHE_HOME', 'relative')
    with pytest.raises(compiled.LibraryError, match='no home folder'):
        compiled.load_library(source)
    assert not (tmp_path / 'relative').exists()
