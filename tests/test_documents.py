"""What the documents name exists: files, paths, modules, names, and a test of every promise."""

import re
import subprocess
from itertools import zip_longest

import pytest
import yaml

from tests.support.paths import ROOT

DOCUMENTS = sorted(path for path in [
    *ROOT.glob('*.md'), *ROOT.glob('docs/*.md'), *ROOT.glob('*/README*.md')])
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


PROMISES = ('docs/guarantees.md', 'SECURITY.md')
NAMED_TEST = re.compile(r'`((?:tests/[\w/]+\.py)?)::(test_\w+)`')


def list_promises(text):
    """Return the paragraphs, points and rows of a document, up to what it does not promise."""
    text = re.split(r'^## What is not ', text, flags=re.MULTILINE)[0]
    text = re.sub(r'^```.*?^```$', '', text, flags=re.MULTILINE | re.DOTALL)
    blocks = []
    for block in re.split(r'\n\s*\n', text):
        if block.startswith('| '):
            blocks += block.splitlines()[2:]                # without the header
        else:
            blocks += re.split(r'\n(?=- )', block)
    return [block for block in blocks if block.strip() and not block.startswith('#')]


@pytest.mark.parametrize('name', PROMISES)
def test_every_promise_names_its_tests(name):
    """Figures may name the benchmark that measures them."""
    promises = list_promises((ROOT / name).read_text(encoding='utf-8'))
    introductions = ('English | ', 'Every promise names', 'Checkpoints, exported models,',
                     'A refused file ends', 'Without etcd,')
    assert len(promises) > 8
    for promise in promises:
        assert NAMED_TEST.search(promise) or '`benchmarks/' in promise or promise.startswith(
            introductions), promise


@pytest.mark.parametrize('name', PROMISES)
def test_named_tests_exist(name):
    """`file::test`; `::test` alone is in the file named before it."""
    file = None
    for path, test in NAMED_TEST.findall((ROOT / name).read_text(encoding='utf-8')):
        file = path or file
        code = (ROOT / file).read_text(encoding='utf-8')
        assert re.search(rf'^def {test}\(', code, re.MULTILINE), f'{file}::{test}'


@pytest.mark.parametrize('folder', ['', 'ViT', 'T2T_ViT'])
def test_the_chinese_page_names_the_same_commands(folder):
    english, chinese = ((ROOT / folder / name).read_text(encoding='utf-8')
                        for name in ('README.md', 'README_cn.md'))
    scripts = re.compile(r'\b(?:python|sh) ([\w/.]+\.(?:py|sh))')
    only = set(scripts.findall(english)) ^ set(scripts.findall(chinese))
    assert not only - {'run_train.sh', 'run_train_multi.sh', 'model_info.py'}, only
    if not folder:
        rows = [re.findall(r'^\|.*?\| *(`python [^`]*`)', text, re.MULTILINE)
                for text in (english, chinese)]
        assert rows[0] == rows[1]
        assert len(re.findall('^## ', english, re.MULTILINE)) == len(
            re.findall('^## ', chinese, re.MULTILINE))


CHINESE = [*sorted(ROOT.glob('docs/*_cn.md')), ROOT / 'SECURITY_cn.md']
FIGURE = re.compile(r'(\d+(?:[.,]\d+)*)(?: ?(million|billion|万|亿))?')
UNITS = {'million': 10 ** 6, 'billion': 10 ** 9, '万': 10 ** 4, '亿': 10 ** 8}


def list_facts(text):
    """Return what a translation keeps of each heading, paragraph, point and row, in their order.

    Of a program that is all of it but the comments. Of other blocks it is the kind, the tests in
    their order, and the words in backticks and the figures in any order.
    """
    facts = []
    for block in re.split(r'(^```.*?^```$)|\n\s*\n|\n(?=[-|] )', text, flags=re.M | re.S):
        if block and block.startswith('```'):
            facts.append(re.sub(r'\s+#.*', '', block))
        elif block and block.strip():
            kind = re.match(r'#+ |[-|] |', block)[0]
            prose = re.sub(r'`[^`]*`|\]\([^)]*\)', '', block)
            figures = [f'{float(figure.replace(",", "")) * UNITS[unit]:,.0f}' if unit else figure
                       for figure, unit in FIGURE.findall(prose)]
            facts.append((kind, NAMED_TEST.findall(block), sorted(re.findall(r'`[^`]*`', block)),
                          sorted(figures)))
    return facts


@pytest.mark.parametrize('path', CHINESE, ids=lambda path: path.name)
def test_the_chinese_page_says_the_same(path):
    english = path.with_name(path.name.replace('_cn', ''))
    texts = [page.read_text(encoding='utf-8') for page in (english, path)]
    assert f'\nEnglish | [简体中文]({path.name})\n' in texts[0]
    assert f'\n[English]({english.name}) | 简体中文\n' in texts[1]
    for number, (expected, found) in enumerate(zip_longest(*map(list_facts, texts))):
        assert found == expected, f'block {number}'


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
