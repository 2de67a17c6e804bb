"""gpu_check.py: on the fake accelerator, on a CPU, and what it says of a device that is wrong."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from common.device_check.report import (
    CheckFailed,
    CheckSkipped,
    Context,
    read_rows,
    run_check,
    run_checks,
)
from common.tools.gpu_check import end_group, main
from tests.support.accelerator import TYPE, build, make_environment
from tests.support.paths import ROOT
from ViT.project import PROJECT


def check(model, environment, output, *arguments, timeout=2400):
    """Run gpu_check.py of a model directory; return (ended process, record)."""
    ended = subprocess.run(
        [sys.executable, 'gpu_check.py', f'-output={output}/record.json', *arguments],
        cwd=ROOT / model, env=environment, capture_output=True, text=True, timeout=timeout)
    return ended, json.loads((output / 'record.json').read_text())


@pytest.fixture(scope='module')
def accelerator(tmp_path_factory):
    folder = tmp_path_factory.mktemp('fake_device')
    build(folder)
    return folder


@pytest.mark.runs
@pytest.mark.parametrize('model', ['ViT', pytest.param('T2T_ViT', marks=pytest.mark.slow)])
def test_a_device_that_computes_rightly(accelerator, tmp_path, model):
    ended, record = check(model, make_environment(accelerator), tmp_path, f'-device={TYPE}',
                          '-no_speed', '-groups=environment,numerics,speed')
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert record['device'] == f'{TYPE}:0' and record['FAIL'] == 0
    names = [row['name'] for row in record['rows'] if row['group'] == 'numerics']
    assert len(names) == 2 * 5          # float32, half precision, and fused attention in it
    assert {row['outcome'] for row in record['rows']} == {'PASS', 'SKIP'}
    # What an update waits for, and starts: 13 copies before the loader drew for erasing and
    # mixing, and an operator more for each parameter before clipping took one for all.
    figures = record['rows'][-1]['figures']
    assert sum(figures['copies'].values()) <= 1
    assert figures['operators'] < {'ViT': 600, 'T2T_ViT': 940}[model]
    for row in record['rows']:
        assert f'{row["outcome"]}  {row["group"]}: {row["name"]}: ' in ended.stdout


@pytest.mark.runs
def test_a_device_that_is_wrong(accelerator, tmp_path):
    environment = make_environment(accelerator, FAKE_WRONG_BYTES='20000')
    ended, record = check('ViT', environment, tmp_path, f'-device={TYPE}', '-groups=numerics')
    assert ended.returncode == 1, ended.stdout + ended.stderr
    failed = [row for row in record['rows'] if row['outcome'] == 'FAIL']
    assert len(failed) >= 2 and all('; at most' in row['text'] for row in failed)
    assert all(len(row['figures']['errors']) > 5 for row in failed)
    assert str(failed[0]['text']) in ended.stdout.partition('What has failed:')[2]


@pytest.mark.runs
def test_a_group_is_ended_with_what_it_has_started():
    """Its trainings run in sessions of their own, and some without an end."""
    code = textwrap.dedent("""
        import subprocess, time
        from common.device_check.commands import started
        from common.tools.gpu_check import end_on_signals

        class Run:
            def start(self):
                return subprocess.Popen(['sleep', '300'], start_new_session=True)

        end_on_signals()
        with started(Run()) as process:
            print(process.pid, flush=True)
            time.sleep(300)
        """)
    with subprocess.Popen([sys.executable, '-c', code], cwd=ROOT, stdout=subprocess.PIPE,
                          start_new_session=True) as process:
        started = Path('/proc') / process.stdout.readline().decode().strip()
        # For a moment it is still the copy of its parent.
        assert wait_for(lambda: (started / 'cmdline').read_bytes().startswith(b'sleep'))
        end_group(process)
    assert wait_for(lambda: not started.exists())


@pytest.mark.runs
def test_a_check_that_is_stopped_leaves_nothing_running(tmp_path):
    def find_processes():
        found = []
        for process in Path('/proc').glob('[0-9]*'):
            with contextlib.suppress(OSError):
                if os.fsencode(tmp_path) in (process / 'cmdline').read_bytes():
                    found.append(process.name)
        return found

    process = subprocess.Popen(
        [sys.executable, 'gpu_check.py', f'-output={tmp_path}/record.json', '-device=cpu',
         '-groups=commands'], cwd=ROOT / 'ViT', env={**os.environ, 'TMPDIR': str(tmp_path)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert wait_for(lambda: len(find_processes()) >= 3)     # itself, the group, and a training
    process.terminate()
    assert process.wait(300) == 128 + signal.SIGTERM
    assert wait_for(lambda: not find_processes()), find_processes()


def wait_for(condition, seconds=300):
    """Tell whether the condition was true once: of processes it may be so for a moment only."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


@pytest.mark.slow
@pytest.mark.runs
@pytest.mark.parametrize('device', ['cpu', TYPE])
@pytest.mark.parametrize('model', ['ViT', 'T2T_ViT'])
def test_all_of_it(accelerator, tmp_path, model, device):
    environment = make_environment(accelerator, FAKE_MEGABYTES='2000')
    ended, record = check(model, environment, tmp_path, f'-device={device}', '-no_speed')
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert record['FAIL'] == 0 and record['PASS'] > 15
    assert ('No accelerator' in ended.stdout) is (device == 'cpu')


def make_context(folder):
    return Context(PROJECT, 'cpu', 2, str(folder))


def test_what_a_check_raises_is_its_outcome(tmp_path):
    context = make_context(tmp_path)

    def fail(error):
        def check(context):
            raise error
        return check

    for error, outcome, text in (
            (CheckFailed('3 is not 4', {'found': 3}), 'FAIL', '3 is not 4'),
            (CheckSkipped('one device'), 'SKIP', 'one device'),
            (RuntimeError('a\nb'), 'FAIL', 'RuntimeError: b')):
        row = run_check('group', 'name', fail(error), context)
        assert (row.outcome, row.text) == (outcome, text)
        assert str(row).startswith(f'{outcome}  group: name: {text} (')
        assert row.figures.get('found') == (3 if isinstance(error, CheckFailed) else None)
    assert 'RuntimeError' in row.figures['traceback']


def test_a_process_that_ended_within_a_check_says_in_which(tmp_path, capsys):
    path = str(tmp_path / 'rows.jsonl')

    def end(context):
        raise SystemExit

    with pytest.raises(SystemExit):
        run_checks('group', [('good', lambda context: ('right', {'a': 1})), ('bad', end)],
                   make_context(tmp_path), path)
    rows, unfinished = read_rows(path)
    assert [(row.name, row.outcome, row.figures) for row in rows] == [('good', 'PASS', {'a': 1})]
    assert unfinished == 'bad'
    assert 'PASS  group: good: right' in capsys.readouterr().out


@pytest.mark.parametrize('arguments, text', [
    (['-groups=numbers'], 'numerics'), (['-nprocs=0'], 'above 0'), (['-device=gpux'], 'gpu'),
    (['-output=/no/such/folder/x.json'], '-output')])
def test_wrong_input(arguments, text, capsys):
    assert main(PROJECT, arguments) == 2
    assert text in capsys.readouterr().err
