"""What the layout promises: common/ knows no model family by name; tests share by tests/support."""

import ast
import glob
import io
import os
import re
import tokenize

import pytest

from tests.support.paths import ROOT

SOURCES = sorted(glob.glob(os.path.join(ROOT, 'common', '**', '*.py'), recursive=True))
FAMILIES = re.compile(
    r'(?<![a-z])(vit|t2t|deit|dino(v[23])?|siglip|beit|swin|moco|mae|eva02|openclip)(?![a-z])',
    re.IGNORECASE)
# The package's own name in paths and in the User-Agent, its environment variables, and the
# project whose layout of training checkpoints and flags this one keeps.
ALLOWED = re.compile(r'vit-paddle|vit-loader|VIT_[A-Z_]+|PaddleViT')


def find_families(text):
    """Return [(line, text)] of what names a family in code and strings, but not in docstrings."""
    found, previous = [], tokenize.NEWLINE
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        is_docstring = token.type == tokenize.STRING and previous in (
            tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
        if token.type not in (tokenize.COMMENT, tokenize.NL):
            previous = token.type
        if token.type != tokenize.COMMENT and not is_docstring:
            name = FAMILIES.search(ALLOWED.sub('', token.string).replace('_', ' '))
            if name:
                found.append((token.start[0], token.string))
    return found


OPENS_IMAGE = re.compile(r'\bImage\s*\.\s*open\b|from PIL\.Image import|(^|[^.\w])PIL\.Image\.open')


def test_pictures_are_opened_where_formats_are_limited():
    """Pillow would run PostScript that is called a JPEG."""
    sources = [path for folder in ('common', 'ViT', 'T2T_ViT', 'examples') for path in glob.glob(
        os.path.join(ROOT, folder, '**', '*.py'), recursive=True)]
    found = []
    for path in sources:
        with open(path, encoding='utf-8') as file:
            if OPENS_IMAGE.search(file.read()):
                found.append(os.path.relpath(path, ROOT))
    # infer.py is copied beside exported models, where there is no project.
    assert sorted(found) == [os.path.join('common', 'data', 'images.py'),
                             os.path.join('common', 'deploy', 'infer.py')]
    with open(os.path.join(ROOT, 'common', 'deploy', 'infer.py'), encoding='utf-8') as file:
        assert file.read().count('Image.open(path, formats=FORMATS)') == 1


@pytest.mark.parametrize('path', SOURCES, ids=lambda path: os.path.relpath(path, ROOT))
def test_common_names_no_family(path):
    with open(path, encoding='utf-8') as file:
        assert not find_families(file.read())


def test_families_are_found_where_they_are_named():
    for text in ('vit_sizes = 1', 'x = "t2t/one"', 'if kind == "DeiT": pass', 'import my_vit'):
        assert find_families(text), text
    for text in ('"""Of ViT."""\n', 'x = 1  # ViT', 'path = "vit-paddle"', 'x["VIT_CACHE"]',
                 'activity = "gravity"', 'def f():\n    """DINO."""\n    return 1'):
        assert not find_families(text), text


TESTS = sorted(glob.glob(os.path.join(ROOT, 'tests', '**', '*.py'), recursive=True))


def find_imported_tests(text):
    """Return the modules under tests/, beside tests/support/, that a source file imports."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f'{node.module or ""}.{alias.name}' for alias in node.names]
        else:
            continue
        found += [name for name in names
                  if name.startswith('tests.') and not name.startswith('tests.support.')
                  or any(part.startswith('test_') for part in name.split('.'))]
    return found


@pytest.mark.parametrize('path', TESTS, ids=lambda path: os.path.relpath(path, ROOT))
def test_no_test_module_is_imported(path):
    with open(path, encoding='utf-8') as file:
        text = file.read()
    assert not find_imported_tests(text)
    if os.path.basename(path).startswith('test_'):
        chain = re.search(r'parents\[\d|dirname\(os\.path\.dirname\(', text)
        assert chain is None or path == __file__, 'paths are in tests/support/paths.py'


def test_imported_tests_are_found():
    for text in ('import tests.data.test_x', 'from tests.data.test_x import y',
                 'from tests.data import test_x', 'from test_x import y', 'from tests import data'):
        assert find_imported_tests(text), text
    for text in ('from tests.support.paths import ROOT', 'from tests.support import recipe',
                 'import pytest'):
        assert not find_imported_tests(text), text


def find_untyped(text):
    """Return the public functions and methods whose parameters or result have no type.

    Names that begin with an underscore are a module's own, but for __init__ and __call__. What
    stands inside a function is not seen from outside.
    """
    found = []

    def visit(body, owner):
        for node in body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith('_'):
                visit(node.body, f'{owner}{node.name}.')
            elif isinstance(node, (ast.If, ast.Try)):
                visit([*node.body, *node.orelse], owner)
            elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and (
                    not node.name.startswith('_') or node.name in ('__init__', '__call__')):
                check(node, owner)

    def check(node, owner):
        arguments = node.args
        names = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs,
                 *filter(None, (arguments.vararg, arguments.kwarg))]
        # __init__ returns nothing anyway; the first parameter of a method is its object.
        missing = node.returns is None and node.name != '__init__' or any(
            name.annotation is None for place, name in enumerate(names)
            if not (owner and place == 0 and name.arg in ('self', 'cls', 'ctx')))
        if missing:
            found.append(owner + node.name)

    visit(ast.parse(text).body, '')
    return found


def test_public_functions_have_types():
    """Of common/ all; of the models' files all but the layers' constructors, which the text of
    the class describes."""
    untyped = []
    for folder in ('common', 'ViT', 'T2T_ViT', 'vit_paddle'):
        for path in sorted(glob.glob(os.path.join(ROOT, folder, '**', '*.py'), recursive=True)):
            with open(path, encoding='utf-8') as file:
                names = find_untyped(file.read())
            untyped += [f'{os.path.relpath(path, ROOT)}: {name}' for name in names
                        if folder in ('common', 'vit_paddle') or not name.endswith('.__init__')]
    assert not untyped


def test_missing_types_are_found():
    for text in ('def f(x) -> int: ...', 'def f(x: int): ...', 'def f(*x, y: int) -> int: ...',
                 'class A:\n    def f(self): ...', 'class A:\n    def __init__(self, x): ...',
                 'class A:\n    def __call__(self, x: int): ...',
                 'if True:\n    async def f(): ...'):
        assert find_untyped(text), text
    for text in ('def f(x: int, *y: str, **z: float) -> int: ...', 'def _f(x): ...',
                 'class A:\n    def f(self) -> int: ...\n    def _g(self, x): ...',
                 'class A:\n    def __init__(self, x: int): ...', 'class _A:\n    def f(self): ...',
                 'def f() -> None:\n    def g(x): ...'):
        assert not find_untyped(text), text
