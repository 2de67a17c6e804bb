"""Lines, bars, pictures and tables that fail: the run goes on, and to the same weights."""

import contextlib
import io
import logging
import os
import signal
import subprocess
import sys

import pytest

from common import fonts
from common.run import side_matter
from common.run.log import _FileHandler
from common.training import confusion
from tests.support.colours import list_arguments, make_colours
from tests.support.paths import ROOT
from tests.support.side_faults import SINKS, Fault, Stream, run, try_fault

pytestmark = pytest.mark.runs


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return make_colours(tmp_path_factory.mktemp('data'))


@pytest.fixture(scope='module')
def right(data, tmp_path_factory):
    return run(data, tmp_path_factory.mktemp('right'))[0]


@pytest.mark.parametrize('sink', SINKS)
def test_a_sink_that_fails_leaves_the_weights_as_they_are(sink, data, right, tmp_path, monkeypatch):
    fault, _, _ = try_fault(sink, None, True, data, tmp_path / 'none', monkeypatch)
    assert fault.calls > 0
    middle = (fault.calls + 1) // 2
    for first, always in ((1, True), (middle, True), (middle, False), (fault.calls, True)):
        fault, weights, lines = try_fault(
            sink, first, always, data, tmp_path / f'{first}-{always}', monkeypatch)
        assert weights == right, (first, always)
        if fault.failures == 0:         # a bar is drawn by the clock
            assert sink == 'stderr' and first > 1
            continue
        said = [line for line in lines
                if 'cannot be written: No space' in line or 'takes no more lines' in line]
        # log.txt cannot say what it lacks; of the tables each is said.
        assert len(said) <= {'tables': 3}.get(sink, 1), said
        assert said or sink == 'log.txt' or not always


def test_an_encoding_without_the_letters(data, right, tmp_path, monkeypatch):
    stream = Stream(Fault())
    monkeypatch.setattr(sys, 'stdout', stream)
    folder = make_colours(tmp_path / '图片', {'苹果': 'red', '香蕉': 'yellow', '樱桃': 'blue'})
    _, lines = run(folder, tmp_path / 'runs')
    assert '\\u56fe\\u7247' in stream.getvalue() and 'Done: ' in stream.getvalue()
    assert any('图片' in line for line in lines)


def test_a_font_without_the_letters(monkeypatch):
    monkeypatch.setattr(fonts, 'FONTS', ())
    image = confusion.draw_confusion(confusion.np.eye(2, dtype=int), ['苹果', 'b'])
    assert image.width > 44


def test_a_line_is_whole_or_not_there(tmp_path):
    class Short(io.FileIO):
        def write(self, data):
            return super().write(data[:3])

    (tmp_path / 'lines').write_bytes(b'one\n')
    with Short(tmp_path / 'lines', 'r+') as file, pytest.raises(OSError, match='only 3 of 4'):
        side_matter.append_line(file, b'two\n')
    assert (tmp_path / 'lines').read_bytes() == b'one\n'


@pytest.mark.parametrize('left, expected', [
    (b'', b'two\n'), (b'one\n', b'one\ntwo\n'), (b'one\nhal', b'one\nhal\ntwo\n')])
def test_a_log_goes_on_with_a_line_of_its_own(tmp_path, left, expected):
    """Also after a run that was killed while it wrote one."""
    (tmp_path / 'log.txt').write_bytes(left)
    handler = _FileHandler(str(tmp_path / 'log.txt'))
    handler.emit(logging.makeLogRecord({'msg': 'two'}))
    handler.close()
    assert (tmp_path / 'log.txt').read_bytes() == expected


def test_a_process_without_streams(data, right, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, 'stdout', None)
    monkeypatch.setattr(sys, 'stderr', None)
    assert run(data, tmp_path)[0] == right


MAIN = str(ROOT / 'ViT' / 'main_single_gpu.py')


@pytest.mark.parametrize('kind', ['full disk', 'closed pipe', 'closed terminal'])
def test_a_process_whose_output_goes_away(kind, data, right, tmp_path):
    command = [sys.executable, MAIN, '-device=cpu', f'-data_path={data}', f'-output={tmp_path}',
               *list_arguments(TRAIN__NUM_EPOCHS=2)]
    if kind == 'full disk':
        if not os.path.exists('/dev/full'):
            pytest.skip('no /dev/full')
        with open('/dev/full', 'wb') as full:
            process = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, timeout=120)
        code, errors = process.returncode, process.stderr.decode()
    else:
        reader, writer = os.pipe() if kind == 'closed pipe' else os.openpty()
        process = subprocess.Popen(
            command, stdout=writer, start_new_session=True,
            stderr=subprocess.PIPE if kind == 'closed pipe' else writer,
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
        os.close(writer)
        with contextlib.suppress(OSError):
            os.read(reader, 4096)
        os.close(reader)
        errors = process.communicate(timeout=120)[1] or b''
        code, errors = process.returncode, errors.decode()
    assert (code, errors) == (0, '')
    made = next(tmp_path.glob('train-*'))
    lines = (made / 'log.txt').read_text(encoding='utf-8')
    assert lines.count('takes no more lines') == 1 and 'Done: 6 updates' in lines
    assert (made / 'confusion.png').exists() and (made / 'last.pdparams').exists()
