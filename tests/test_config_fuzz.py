"""Hostile configs in a short form; tests/slow/test_config_fuzz.py is the long one."""

import pytest

from T2T_ViT.project import PROJECT as T2T_VIT
from tests.support.config_fuzz import check_command_lines, check_runs
from ViT.project import PROJECT as VIT

pytestmark = pytest.mark.runs


@pytest.mark.parametrize('project', [VIT, T2T_VIT], ids=['ViT', 'T2T-ViT'])
def test_command_lines_are_read_or_refused(project, tmp_path):
    read = check_command_lines(project, tmp_path, count=300, seed=1)
    assert 5 < read < 280               # both happen: 27 are read on average, give or take 6


@pytest.mark.parametrize('project', [VIT, T2T_VIT], ids=['ViT', 'T2T-ViT'])
def test_what_is_read_runs_or_ends_in_words(project, tmp_path):
    codes = check_runs(project, tmp_path, count=60, seed=1)
    assert codes[0] > 5
