"""docs/options.md is what the options' own lines give."""

from common.config import Options
from common.option import Option, list_options
from common.tools import options


def test_the_page_equals_what_is_generated():
    with open(options.PAGE, encoding='utf-8') as file:
        assert file.read() == options.format_page(), 'run python -m common.tools.options'


def test_every_option_stands_on_the_page():
    page = options.format_page()
    assert page.count('\n## ') == 3
    for key in list_options(Options):
        assert f'| `{key}` |' in page, key


def test_a_row_says_what_may_be_given():
    row = options.format_table({'A.B': Option(
        0.1, kind=float, above=0, at_most=2, flag='b other', help='of x | y')}).splitlines()[2]
    assert row == ('| `A.B` | `-b`, `-other` | `0.1` | number, above 0 and at most 2, or none | '
                   r'of x \| y |')
