"""Thousands of hostile configs: read, or refused in a short line; what is read runs.

    python -m pytest -m slow tests/slow/test_config_fuzz.py
"""

import pytest

from T2T_ViT.project import PROJECT as T2T_VIT
from tests.support.config_fuzz import check_command_lines, check_runs
from ViT.project import PROJECT as VIT

pytestmark = pytest.mark.slow
PROJECTS = pytest.mark.parametrize('project', [VIT, T2T_VIT], ids=['ViT', 'T2T-ViT'])


@PROJECTS
@pytest.mark.parametrize('seed', range(10, 14))
def test_command_lines_are_read_or_refused(project, seed, tmp_path):
    check_command_lines(project, tmp_path, count=1000, seed=seed)


@PROJECTS
@pytest.mark.parametrize('seed', range(10, 12))
def test_what_is_read_runs_or_ends_in_words(project, seed, tmp_path):
    check_runs(project, tmp_path, count=500, seed=seed)
