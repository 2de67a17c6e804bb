"""C sources are compiled once; where they cannot be, the reason is told."""

import shutil
import stat

import pytest

from common.kernels import compiled

needs_compiler = pytest.mark.skipif(not shutil.which('cc'), reason='needs a C compiler')


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A C source, and an empty cache."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    path = tmp_path / 'seven.c'
    path.write_text('int seven(void) { return 7; }')
    return path


def list_cache(tmp_path):
    return sorted((tmp_path / 'cache' / 'vit-paddle').iterdir())


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
