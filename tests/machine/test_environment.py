"""CPU settings: chosen by the processor's flags, never against the user."""

import os
import subprocess
import sys

import pytest

from common.machine import environment
from common.machine.environment import choose_settings, read_cpu

# Feature flags as /proc/cpuinfo shows them, shortened to what matters and some beside it.
COMMON = {'fpu', 'sse2', 'ssse3', 'sse4_1', 'sse4_2', 'avx', 'fma', 'avx2', 'bmi2'}
AVX512 = {'avx512f', 'avx512dq', 'avx512cd', 'avx512bw', 'avx512vl', 'avx512_vnni'}
MACHINES = {
    'AMD EPYC 9004 (Zen 4)': ('AuthenticAMD', COMMON | AVX512, '7'),
    'AMD EPYC 7003 (Zen 3)': ('AuthenticAMD', COMMON, '5'),
    'AMD, AVX-512 hidden in part': ('AuthenticAMD', COMMON | AVX512 - {'avx512vl'}, '5'),
    'AMD FX (before AVX2)': ('AuthenticAMD', {'sse2', 'avx', 'fma4'}, None),
    'Intel Xeon (Ice Lake)': ('GenuineIntel', COMMON | AVX512, None),
    'Intel Core (Haswell)': ('GenuineIntel', COMMON, None),
    'unknown (not x86)': ('', set(), None),
}


@pytest.mark.parametrize('machine', MACHINES)
def test_mkl_path_follows_the_flags(machine):
    vendor, flags, expected = MACHINES[machine]
    settings = choose_settings(vendor, flags, cores=4, environment={})
    assert settings.get('MKL_DEBUG_CPU_TYPE') == expected
    assert settings['OMP_NUM_THREADS'] == '4'


@pytest.mark.parametrize('name', ['OMP_NUM_THREADS', 'KMP_BLOCKTIME', 'MKL_DEBUG_CPU_TYPE'])
def test_the_users_setting_wins(name):
    vendor, flags, _ = MACHINES['AMD EPYC 9004 (Zen 4)']
    settings = choose_settings(vendor, flags, cores=4, environment={name: '1'})
    assert name not in settings
    assert len(settings) == 2           # the others are still chosen


def test_mkl_variables_of_the_user_are_not_fought():
    vendor, flags, _ = MACHINES['AMD EPYC 9004 (Zen 4)']
    settings = choose_settings(vendor, flags, 4, {'MKL_ENABLE_INSTRUCTIONS': 'AVX2'})
    assert 'MKL_DEBUG_CPU_TYPE' not in settings
    assert 'OMP_NUM_THREADS' not in choose_settings(vendor, flags, 4, {'MKL_NUM_THREADS': '1'})


def test_read_cpu(tmp_path):
    path = tmp_path / 'cpuinfo'
    path.write_text('processor\t: 0\nvendor_id\t: AuthenticAMD\nflags\t\t: fpu avx2 fma\n\n'
                    'processor\t: 1\nvendor_id\t: Other\n')
    assert read_cpu(path) == ('AuthenticAMD', {'fpu', 'avx2', 'fma'})
    assert read_cpu(tmp_path / 'missing') == ('', set())


@pytest.mark.parametrize('kind', ['file', 'below a file', 'closed', 'relative'])
@pytest.mark.runs
def test_a_home_that_is_no_folder_does_no_harm(tmp_path, kind):
    (tmp_path / 'file').write_text('x')
    (tmp_path / 'closed').mkdir(mode=0o500)
    if kind == 'closed' and os.access(tmp_path / 'closed', os.W_OK):
        pytest.skip('this user may write everywhere')
    name = {'below a file': 'file/x'}.get(kind, kind)
    home = 'rel' if kind == 'relative' else str(tmp_path / name)
    before = set(os.listdir())
    code = ('import os\nfrom common.machine.environment import tune_cpu\ntune_cpu()\n'
            'import paddle\nprint(os.environ["HOME"])')
    assert run_python(code, HOME=home).stdout.strip() == home
    assert set(os.listdir()) == before


def run_python(code, **environment):
    inherited = {name: value for name, value in os.environ.items()
                 if name not in ('OMP_NUM_THREADS', 'MKL_DEBUG_CPU_TYPE', 'VIT_CPU_TUNED')}
    return subprocess.run([sys.executable, '-c', code], env=inherited | environment, check=True,
                          capture_output=True, text=True)


@pytest.mark.runs
def test_common_imports_no_paddle():
    run_python('import common, common.machine.environment, common.config, sys; '
               'assert "paddle" not in sys.modules')


@pytest.mark.runs
def test_config_tunes_before_paddle_and_without_noise():
    done = run_python('import ViT.config, os, paddle; print(os.environ["OMP_NUM_THREADS"]); '
                      'from common.machine.environment import describe_cpu; print(describe_cpu())',
                      OMP_NUM_THREADS='3')
    threads, line = done.stdout.splitlines()[-2:]
    assert threads == '3' and 'OMP_NUM_THREADS=3 (already set)' in line
    assert 'WISELY' not in done.stderr and 'ccache' not in done.stderr


@pytest.mark.runs
def test_the_root_logger_is_the_users():
    """Paddle's handler took what anybody logged, and printed it where nobody reads."""
    result = run_python('\n'.join((
        'import logging', 'from common.machine.environment import tune_cpu', 'tune_cpu()',
        'import paddle', 'logging.getLogger("common.x").warning("a")',
        'logging.basicConfig(format="- %(message)s")', 'logging.warning("b")',
        'logging.info("c")')))
    assert result.stderr.splitlines() == ['a', '- b']


@pytest.mark.runs
def test_started_processes_share_the_cores():
    code = ('from common.machine.environment import *; tune_cpu(); share_cores(1000); '
            'import os; print(os.environ["OMP_NUM_THREADS"])')
    assert run_python(code).stdout.split()[-1] == '1'
    assert run_python(code, OMP_NUM_THREADS='3').stdout.split()[-1] == '3'


@pytest.mark.parametrize('version', [0, 1])
def test_memory_is_that_of_the_container(version, tmp_path, monkeypatch):
    limits = [tmp_path / 'memory.max', tmp_path / 'limit_in_bytes']
    monkeypatch.setattr(environment, 'MEMORY_LIMITS', limits)
    machine = environment.measure_memory()
    assert machine > 10 ** 8
    limits[version].write_text('64000000\n')
    assert environment.measure_memory() == 64_000_000
    for content in ('max\n', str(2 ** 62), '', 'x'):
        limits[version].write_text(content)
        assert environment.measure_memory() == machine
