"""Kernels for checkpoints against zlib and NumPy, byte by byte, and without them."""

import logging
import platform
import shutil
import zlib

import numpy as np
import pytest

from common.kernels import bulk, compiled
from common.machine.environment import read_cpu

needs_compiler = pytest.mark.skipif(not shutil.which('cc'), reason='needs a C compiler')


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@needs_compiler
def test_kernels_are_there():
    assert bulk.load_kernels() is not None


def check_crc32(rng):
    data = rng.integers(0, 256, 70_000, dtype=np.uint8)
    sizes = [0, 1, 63, 64, 65, bulk.LEAST - 1, bulk.LEAST, bulk.LEAST + 63, 65_536, 69_990]
    for size in sizes:
        for start, crc in [(0, 0), (1, 0xffffffff), (7, 0x12345678)]:
            part = data[start:start + size]
            assert bulk.crc32(part, crc) == zlib.crc32(part, crc)
    assert bulk.crc32(data[9000:], bulk.crc32(data[:9000])) == zlib.crc32(data)


def test_crc32_is_zlibs(way, rng):
    check_crc32(rng)
    data = rng.bytes(10_000)
    for readable in (data, bytearray(data), memoryview(data)):
        assert bulk.crc32(readable) == zlib.crc32(data)


def check_transpose(rng):
    shapes = [(1, 1), (1, 40), (40, 1), (16, 8), (15, 7), (17, 9), (16, 23), (33, 64), (130, 300)]
    for rows, columns in [*shapes, *rng.integers(1, 200, (60, 2))]:
        # With neighbours, which must stay as they are, and at any alignment.
        top, left, more = rng.integers(0, 9, 3)
        whole = rng.random((rows + top, columns + left + more), dtype=np.float32)
        source = whole[top:, left:left + columns]
        target = np.full((columns + top, rows + left + more), 7, np.float32)
        expected = target.copy()
        expected[top:, left:left + rows] = source.T
        bulk.transpose(source, target[top:, left:left + rows])
        np.testing.assert_array_equal(target, expected)
    target = np.zeros((48, 64), np.float32)
    source = rng.random((64, 48), dtype=np.float32)
    for offset in range(8):                             # of aligned lines, too
        memory = np.zeros(48 * 64 + 32, np.float32)
        start = (-memory.ctypes.data % 64) // 4 + offset
        target = memory[start:start + 48 * 64].reshape(48, 64)
        bulk.transpose(source, target)
        np.testing.assert_array_equal(target, source.T)
        assert memory[:start].sum() + memory[start + 48 * 64:].sum() == 0


def test_transpose_is_numpys(way, rng):
    check_transpose(rng)


@pytest.mark.parametrize('source_type, target_type', [
    ('float16', 'float32'), ('float64', 'float32'), ('int64', 'float32'), ('>f4', 'float32'),
    ('float32', 'float16')])
def test_transpose_converts(way, rng, source_type, target_type):
    source = (rng.random((150, 70)) * 100).astype(source_type)
    target = np.zeros((70, 150), target_type)
    bulk.transpose(source, target)
    np.testing.assert_array_equal(target, source.T.astype(target_type))


def test_transpose_of_spread_numbers(way, rng):
    source = rng.random((60, 90), dtype=np.float32)
    for part in (source[:, ::2], source[::-3], source.T[10:30]):
        target = np.zeros(part.shape[::-1], np.float32)
        bulk.transpose(part, target)
        np.testing.assert_array_equal(target, part.T)


def test_transpose_refuses_other_shapes(way):
    with pytest.raises(ValueError, match=r'\(20, 30\) does not transpose to \(30, 19\)'):
        bulk.transpose(np.zeros((20, 30), np.float32), np.zeros((30, 19), np.float32))


def test_transpose_refuses_to_write_what_is_read_only(way):
    target = np.zeros((20, 30), np.float32)
    target.flags.writeable = False
    with pytest.raises(ValueError, match='read-only'):
        bulk.transpose(np.ones((30, 20), np.float32), target)
    assert target.sum() == 0


def test_are_equal(way, rng):
    first = rng.integers(0, 256, 3 * bulk.COMPARED + 5, dtype=np.uint8)
    assert bulk.are_equal(first, first.copy())
    assert bulk.are_equal(first[:0], first[:0])
    for at in (0, bulk.COMPARED, len(first) - 1):
        second = first.copy()
        second[at] ^= 1
        assert not bulk.are_equal(first, second)


# Of processors without any vector instructions, and with 256-bit ones.
@pytest.mark.skipif(platform.machine() != 'x86_64', reason='names x86-64 processors')
@needs_compiler
@pytest.mark.parametrize('processor, feature', [
    (['-march=x86-64'], 'sse2'), (['-march=x86-64-v2', '-mpclmul'], 'pclmulqdq'),
    (['-march=x86-64-v3'], 'avx2')])
def test_kernels_of_other_processors(processor, feature, empty_library_cache, monkeypatch, rng):
    if feature not in read_cpu()[1]:
        pytest.skip(f'this processor lacks {feature}')
    monkeypatch.setattr(compiled, 'COMPILE', (*compiled.COMPILE, *processor))
    monkeypatch.setattr(compiled, 'read_cpu', lambda: ('', set()))      # no -march=native
    assert bulk.load_kernels() is not None
    check_crc32(rng)
    check_transpose(rng)


def test_the_log_says_why_there_are_none(empty_library_cache, monkeypatch, caplog):
    monkeypatch.setenv(compiled.SWITCH, '0')
    with caplog.at_level(logging.INFO):
        assert bulk.load_kernels() is None
    assert [record.message for record in caplog.records] == [
        'Kernels for checkpoints: none (turned off by VIT_COMPILED=0). '
        'NumPy does it, more slowly.']
