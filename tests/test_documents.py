"""What the documents name exists: linked files, paths, modules and the names in CONTRIBUTING.md."""

import re
import subprocess

import pytest
import yaml

from tests.support.paths import ROOT

DOCUMENTS = sorted(path for path in [
    *ROOT.glob('*.md'), *ROOT.glob('docs/*.md'), *ROOT.glob('*/README.md')])
FOLDERS = ('common', 'ViT', 'T2T_ViT', 'tests', 'benchmarks', 'docs', 'examples')
MODULES = [path for folder in FOLDERS for path in (ROOT / folder).rglob('*.py')]


@pytest.mark.parametrize('path', DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_linked_files_exist(path):
    for target in re.findall(r'\]\(([^)#]+)[^)]*\)', path.read_text(encoding='utf-8')):
        if not re.match(r'https?:|mailto:', target):
            assert (path.parent / target).exists(), target


@pytest.mark.parametrize('path', DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_paths_in_the_repository_exist(path):
    text = path.read_text(encoding='utf-8')
    for name in re.findall(rf'`((?:{"|".join(FOLDERS)})/[\w/.-]*)`', text):
        assert any((folder / name).exists() for folder in (ROOT, path.parent)), name


def test_modules_and_names_in_contributing_exist():
    text = (ROOT / 'CONTRIBUTING.md').read_text(encoding='utf-8')
    names = {path.name for path in MODULES}
    code = '\n'.join(path.read_text(encoding='utf-8') for path in MODULES)
    for module in re.findall(r'`(?:[\w/]+/)?(\w+\.py)`', text):
        assert module in names, module
    found = set(re.findall(r'`([A-Za-z]\w*[_A-Z]\w*)`', text)) - set(FOLDERS)
    assert len(found) >= 3
    for name in found:
        assert re.search(rf'(class|def) {name}\b|^ *{name}\b.* = ', code, re.MULTILINE), name


@pytest.mark.parametrize('name', ['.pre-commit-config.yaml', '.github/workflows/ci.yaml',
                                  '.github/ISSUE_TEMPLATE/bug.yaml'])
def test_service_files_are_yaml(name):
    assert yaml.safe_load((ROOT / name).read_text(encoding='utf-8'))


@pytest.mark.runs
def test_the_check_script_is_a_shell_script():
    subprocess.run(['bash', '-n', ROOT / '.ci' / 'run'], check=True)
    assert '.ci/run' in (ROOT / '.github' / 'workflows' / 'ci.yaml').read_text()
