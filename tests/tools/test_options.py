"""docs/options.md and options_cn.md are what the options' own lines and the Chinese texts give."""

import pytest
import yaml

from common.config import Options
from common.errors import UserError
from common.option import Option, list_options
from common.tools import options


def test_the_pages_equal_what_is_generated():
    pages = options.format_pages()
    assert [*pages] == [options.PAGE, options.CHINESE_PAGE]
    for path, text in pages.items():
        with open(path, encoding='utf-8') as file:
            assert file.read() == text, 'run python -m common.tools.options'


def test_every_option_stands_on_the_pages():
    for page in options.format_pages().values():
        assert page.count('\n## ') == 3
        for key in list_options(Options):
            assert f'| `{key}` |' in page, key


def test_keys_without_a_text_and_without_an_option_are_named(tmp_path):
    english = options.list_texts(options.list_tables())
    texts = options.read_texts(options.CHINESE_TEXTS, english)
    texts['shared']['TRAIN.NO_SUCH'] = texts['shared'].pop('TRAIN.BASE_LR')
    texts['ViT']['SEED'] = 'the shared text'
    texts['words']['own'] = ''
    texts['ViT']['MODEL.DEPTH'] = 12
    del texts['T2T-ViT']
    texts['DeiT'] = {'SEED': 'of a model that is not there'}
    path = tmp_path / 'texts.yaml'
    path.write_text(yaml.safe_dump(texts, allow_unicode=True), encoding='utf-8')
    with pytest.raises(UserError) as error:
        options.read_texts(str(path), english)
    missing = ['words: own', 'shared: TRAIN.BASE_LR', 'ViT: MODEL.DEPTH',
               *(f'T2T-ViT: {key}' for key in english['T2T-ViT'])]
    superfluous = ['shared: TRAIN.NO_SUCH', 'ViT: SEED', 'DeiT: SEED']
    faults = str(error.value).removeprefix(f'{path}: ').removesuffix('.').split('; ')
    assert sorted(faults) == sorted([
        *(f'{key} has no text' for key in missing),
        *(f'{key} is not on the English page' for key in superfluous)])


def test_a_changed_help_needs_a_text_of_its_own():
    tables = {'shared': {'A': Option(1, help='one'), 'B': Option(1, help='two')},
              'Model': {'A': Option(2, help='one'), 'B': Option(1, help='other')}}
    assert options.list_texts(tables)['Model'] == {'B': 'other'}


def test_a_row_says_what_may_be_given():
    table = {'A.B': Option(0.1, kind=float, above=0, at_most=2, flag='b other', help='of x | y')}
    helps = {'A.B': 'of x | y'}
    row = options.format_table(table, helps, options.PAGE_WORDS).splitlines()[2]
    assert row == ('| `A.B` | `-b`, `-other` | `0.1` | number, above 0 and at most 2, or none | '
                   r'of x \| y |')
    words = {**options.PAGE_WORDS, 'float': 'Zahl', 'above': 'über {}', 'and': ' und '}
    assert '| Zahl, über 0 und at most 2, or none |' in options.format_table(table, helps, words)
