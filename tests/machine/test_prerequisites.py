"""The first words where something is missing: one line, exit code 2, also for -h."""

import glob
import os
import subprocess
import sys

import pytest

from common.machine import prerequisites
from common.machine.prerequisites import PACKAGES, find_problem, read_versions
from tests.support.paths import ROOT

GOOD = {'paddle': '3.3.1', 'numpy': '2.2.6', **dict.fromkeys(PACKAGES, '')}


@pytest.mark.parametrize('python, versions, expected', [
    ((3, 11), {}, ''), ((3, 13), {}, ''), ((3, 10), {'paddle': '2.6.2', 'numpy': '1.26.4'}, ''),
    ((3, 12), {'paddle': '', 'numpy': '9.0'}, ''), ((3, 12), {'paddle': '3.4.0.dev1'}, ''),
    ((3, 9), {'paddle': None}, 'Python 3.9 is too old; Python 3.10 to 3.13 will do.'),
    ((3, 12), {'paddle': None}, 'Paddle is not installed: pip install -r requirements.txt (for a '
     'GPU: requirements-gpu.txt)'),
    ((3, 14), {'paddle': None}, 'Paddle is not installed, and has no build for Python 3.14; '
     'Python 3.10 to 3.13 will do.'),
    ((3, 11), {'numpy': None}, 'NumPy is not installed: pip install -r requirements.txt'),
    ((3, 11), {'numpy': '2.4.0'},
     'NumPy 2.4.0 is too new for Paddle 3.3.1: pip install "numpy<2.4"'),
    ((3, 11), {'numpy': '2.3.0rc1', 'paddle': '2.6.2'},
     'NumPy 2.3.0rc1 is too new for Paddle 2.6.2: pip install "numpy<2.3"'),
    ((3, 11), {'numpy': '2.3.5'}, ''),
    ((3, 11), {'yaml': None, 'tqdm': None},
     'PyYAML, tqdm are not installed: pip install -r requirements-common.txt'),
    ((3, 11), {'PIL': None}, 'Pillow is not installed: pip install -r requirements-common.txt'),
])
def test_what_is_missing_is_named_with_its_remedy(python, versions, expected):
    assert find_problem(python, {**GOOD, **versions}) == expected


def test_here_nothing_is_missing():
    versions = read_versions()
    assert find_problem(sys.version_info[:2], versions) == ''
    import paddle
    assert versions['paddle'] == paddle.__version__


@pytest.mark.runs
@pytest.mark.parametrize('kind, limit, words', [
    ('RLIMIT_NOFILE', 5, 'only 5 files may be open, too few for Paddle: ulimit -n 1024'),
    ('RLIMIT_AS', 700_000_000, 'only 700 MB of addresses may be used, too few for Paddle: ')])
def test_a_limit_that_is_too_low_for_paddle_is_said_first(kind, limit, words):
    resource = pytest.importorskip('resource')
    ended = run('ViT/main_single_gpu.py', '-h', limit=lambda: resource.setrlimit(
        getattr(resource, kind), (limit, limit)))
    assert (ended.returncode, ended.stdout) == (2, '')
    assert ended.stderr.startswith(f'error: {words}') and ended.stderr.count('\n') == 1


def test_a_program_from_elsewhere_gets_an_exception(monkeypatch):
    monkeypatch.setattr(prerequisites, 'read_versions', lambda: {**GOOD, 'paddle': None})
    with pytest.raises(ImportError, match='^Paddle is not installed'):
        prerequisites.require(os.path.join(ROOT, 'ViT'))


def run(script, *arguments, python=sys.executable, limit=None, **environment):
    return subprocess.run([python, os.path.join(ROOT, script), *arguments], capture_output=True,
                          text=True, timeout=120, env={**os.environ, **environment},
                          preexec_fn=limit)


@pytest.mark.runs
@pytest.mark.parametrize('script', ['ViT/main_single_gpu.py', 'T2T_ViT/predict.py'])
def test_a_script_without_paddle_says_so_first(tmp_path, script):
    (tmp_path / 'sitecustomize.py').write_text('import sys\nsys.modules["paddle"] = None\n')
    ended = run(script, '-h', PYTHONPATH=str(tmp_path))
    assert (ended.returncode, ended.stdout) == (2, '')
    assert ended.stderr.startswith('error: Paddle is not installed: pip install -r requirements.txt'
                                   ' (for a GPU: requirements-gpu.txt)')
    assert ended.stderr.count('\n') == 1


def test_paths_are_as_seen_from_here_and_an_environment_is_pointed_at(tmp_path, monkeypatch):
    problem = find_problem((3, 11), {**GOOD, 'paddle': None})
    (tmp_path / 'ViT').mkdir()
    monkeypatch.chdir(tmp_path)
    assert prerequisites.point_to(str(tmp_path), problem) == problem
    monkeypatch.chdir(tmp_path / 'ViT')
    shown = prerequisites.point_to(str(tmp_path), problem)
    assert shown == ('Paddle is not installed: pip install -r ../requirements.txt (for a GPU: '
                     '../requirements-gpu.txt)')
    (tmp_path / '.venv' / 'bin').mkdir(parents=True)
    (tmp_path / '.venv' / 'bin' / 'activate').touch()
    assert prerequisites.point_to(str(tmp_path), problem) == \
        f'{shown}. Or activate the environment: . ../.venv/bin/activate'
    assert 'will do. Or activate' in prerequisites.point_to(
        str(tmp_path), find_problem((3, 9), {'paddle': None}))
    monkeypatch.setattr(prerequisites.sys, 'prefix', str(tmp_path / '.venv'))
    assert prerequisites.point_to(str(tmp_path), problem) == shown


@pytest.mark.runs
def test_an_old_python_says_so_first():
    pattern = os.path.expanduser('~/.pyenv/versions/3.[89].*/bin/python')
    for python in glob.glob(pattern):
        ended = run('ViT/demo.py', python=python)
        assert ended.returncode == 2 and ended.stdout == ''
        assert ended.stderr.startswith('error: Python 3.') and ended.stderr.count('\n') == 1
