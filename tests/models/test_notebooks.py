"""Every notebook runs from top to bottom as it is, and is stored as it should be on the web.

Each is executed in a fresh kernel, in a copy of its directory: nothing is written to the tree.
"""

import json
import os
import re
import shutil
from glob import glob

import nbformat
import paddle
import pytest
from nbformat.v4 import new_code_cell

from tests.support.paths import ROOT

pytestmark = pytest.mark.runs

NOTEBOOKS = sorted(os.path.relpath(path, ROOT) for path in glob(f'{ROOT}/*/notebooks/*.ipynb'))
LINKED = ('common', 'examples', 'tests')
TIMEOUT = 1200              # seconds a cell, on a machine that has other things to do
MAX_KILOBYTES = 600
# Of a machine, not of the project: home folders, temporary folders, installed packages.
MACHINE_PATH = re.compile(r'(?<![\w.])/(home|root|tmp|opt|usr|var|Users)/|site-packages')
# The older Paddle runs one of each directory: the code behind the others is tested on both.
ON_OLDER_PADDLE = ('ViT/notebooks/5_export_and_predict.ipynb',
                   'T2T_ViT/notebooks/2_attention.ipynb')
# (notebook, cell) that shows a command that fails, and its exit code.
FAILING = {('ViT/notebooks/5_export_and_predict.ipynb', 'bad'): 1}


def read_notebook(name):
    return nbformat.read(os.path.join(ROOT, name), as_version=4)


def copy_directory(name, target):
    """Copy the notebook's model directory below `target`, with links to what it uses."""
    directory = name.split('/')[0]
    shutil.copytree(os.path.join(ROOT, directory), os.path.join(target, directory),
                    ignore=shutil.ignore_patterns('output', '__pycache__', '.ipynb_checkpoints'))
    for linked in LINKED:
        os.symlink(os.path.join(ROOT, linked), os.path.join(target, linked))
    return os.path.join(target, os.path.dirname(name))


def test_there_are_notebooks_for_both_models():
    assert len([name for name in NOTEBOOKS if name.startswith('ViT/')]) == 5
    assert len([name for name in NOTEBOOKS if name.startswith('T2T_ViT/')]) == 2


def add_checks(book, name):
    """Remove the outputs; after each cell with a command, add one that checks its exit code.

    A command that fails does not stop a notebook.
    """
    cells = []
    for cell in book.cells:
        cells.append(cell)
        if cell.cell_type == 'code':
            cell.outputs, cell.execution_count = [], None
            if re.search(r'^ *!', cell.source, re.M):
                code = FAILING.get((name, cell.id), 0)
                cells.append(new_code_cell(f"assert _exit_code == {code}, {cell.id!r}"))
    book.cells = cells
    return book


@pytest.mark.parametrize('name', NOTEBOOKS)
def test_notebook_runs(name, tmp_path):
    from nbclient import NotebookClient
    if paddle.__version__.startswith('2.') and name not in ON_OLDER_PADDLE:
        pytest.skip('takes minutes; its code is tested on this Paddle elsewhere')
    folder = copy_directory(name, str(tmp_path))
    book = add_checks(read_notebook(name), name)
    NotebookClient(book, timeout=TIMEOUT, kernel_name='python3',
                   resources={'metadata': {'path': folder}}).execute()
    if not any(notebook == name for notebook, _ in FAILING):
        for text in texts_of(book):
            assert not re.search(r'^(Traceback|error:|usage:)', text, re.M), text


@pytest.mark.parametrize('name', NOTEBOOKS)
def test_stored_outputs(name):
    with open(os.path.join(ROOT, name), encoding='utf-8') as file:
        book = json.load(file)
    nbformat.validate(book)
    assert (book['nbformat'], book['nbformat_minor']) == (4, 5)
    assert os.path.getsize(os.path.join(ROOT, name)) < MAX_KILOBYTES * 1024
    code = [cell for cell in book['cells'] if cell['cell_type'] == 'code']
    assert [cell['execution_count'] for cell in code] == list(range(1, len(code) + 1))
    assert sum(bool(cell['outputs']) for cell in code) >= len(code) - 2
    notes = [''.join(cell['source']) for cell in book['cells'] if cell['cell_type'] == 'markdown']
    assert any('中文' in note for note in notes)
    for text in texts_of(read_notebook(name)):
        assert not MACHINE_PATH.search(text), text
        assert '\x1b' not in text and len(text.splitlines()) <= 60, text


@pytest.mark.parametrize('name', NOTEBOOKS)
def test_links_lead_somewhere(name):
    for cell in read_notebook(name).cells:
        if cell.cell_type == 'markdown':
            for target in re.findall(r'\]\(([^)#]+)\)', cell.source):
                path = os.path.join(ROOT, os.path.dirname(name), target)
                assert target.startswith('http') or os.path.exists(path), target


def texts_of(book):
    """Return the text of every output of a notebook."""
    outputs = [output for cell in book.cells if cell.cell_type == 'code' for output in cell.outputs]
    return [output.get('text') or ''.join(output.get('data', {}).get('text/plain', ''))
            for output in outputs]
