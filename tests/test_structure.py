"""What the layout of the code promises: common/ knows no model family by name."""

import glob
import io
import os
import re
import tokenize

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SOURCES = sorted(glob.glob(os.path.join(ROOT, 'common', '**', '*.py'), recursive=True))
FAMILIES = re.compile(
    r'(?<![a-z])(vit|t2t|deit|dino(v[23])?|siglip|beit|swin|moco|mae|eva02|openclip)(?![a-z])',
    re.IGNORECASE)
# The package's own name in paths and in the User-Agent, its environment variables, and the
# project whose layout of training checkpoints and flags this one keeps.
ALLOWED = re.compile(r'vit-paddle|vit-gradients|VIT_[A-Z_]+|PaddleViT')


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


def test_pictures_are_opened_in_one_place():
    """Where the formats are limited: Pillow would run PostScript that is called a JPEG."""
    sources = [path for folder in ('common', 'ViT', 'T2T_ViT', 'examples') for path in glob.glob(
        os.path.join(ROOT, folder, '**', '*.py'), recursive=True)]
    found = []
    for path in sources:
        with open(path, encoding='utf-8') as file:
            if OPENS_IMAGE.search(file.read()):
                found.append(os.path.relpath(path, ROOT))
    assert found == [os.path.join('common', 'data', 'images.py')]


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
