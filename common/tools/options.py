"""docs/options.md and docs/options_cn.md: every option, shared or of a model directory, as tables.

    python -m common.tools.options          # from the repository's root: write them anew

The Chinese texts are in docs/options_cn.yaml, by option; what it lacks or has too many of is named.
"""

import os
import sys

from common.config import Options
from common.errors import UserError, report_errors
from common.option import WORDS, Option, list_options
from common.project import list_projects
from common.yaml_text import read_yaml

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PAGE = os.path.join(ROOT, 'docs', 'options.md')
CHINESE_PAGE = os.path.join(ROOT, 'docs', 'options_cn.md')
CHINESE_TEXTS = os.path.join(ROOT, 'docs', 'options_cn.yaml')

SHARED = 'shared'               # the table of what every model has; the others have a model's name
PAGE_WORDS = {
    **WORDS,
    'head': """# Options

English | [简体中文](options_cn.md)

Made by `python -m common.tools.options` from the lines of `common/config.py` and of each model's
`config.py`. A yaml file, a flag, or `-opts KEY VALUE` sets an option; the later wins. A value
that the run does not read is named in its log.
""",
    'heading': 'Shared by all models',
    'own': "The model's own, and those with another default.",
    'columns': '| option | flag | default | values | what it is |',
}

Tables = dict[str, dict[str, Option]]       # {SHARED or a model's name: {key: Option}}
Texts = dict[str, dict[str, str]]           # {"words": PAGE_WORDS, and as Tables: {key: help}}


def format_pages() -> dict[str, str]:
    """Return {path: text} of both pages. Raises UserError naming keys without a Chinese text."""
    tables = list_tables()
    english = list_texts(tables)
    chinese = read_texts(CHINESE_TEXTS, english)
    return {PAGE: format_page(tables, english), CHINESE_PAGE: format_page(tables, chinese)}


def list_tables() -> Tables:
    """Return the shared options, and of each model its own and those that it changes."""
    shared = list_options(Options)
    tables = {SHARED: shared}
    for project in list_projects():
        own = list_options(project.options)
        tables[project.name] = {key: option for key, option in own.items()
                                if shared.get(key) != option}
    return tables


def list_texts(tables: Tables) -> Texts:
    """Return the English texts; of a model's table only what the shared one does not say."""
    texts = {name: {key: option.help for key, option in table.items()}
             for name, table in tables.items()}
    return {'words': PAGE_WORDS, SHARED: texts.pop(SHARED), **{
        name: {key: text for key, text in own.items()
               if key not in tables[SHARED] or text != tables[SHARED][key].help}
        for name, own in texts.items()}}


def read_texts(path: str, english: Texts) -> Texts:
    """Return the texts of a yaml file. Raises UserError if its keys are not the English ones."""
    texts = read_yaml(path)
    faults = []
    for name in {**english, **texts}:
        wanted, found = english.get(name, {}), texts.setdefault(name, {})
        if not isinstance(found, dict):
            raise UserError(f'{path}: {name} is no group of texts.')
        faults += [f'{name}: {key} has no text' for key in wanted
                   if not (isinstance(found.get(key), str) and found[key])]
        faults += [f'{name}: {key} is not on the English page' for key in found
                   if key not in wanted]
    if faults:
        raise UserError(f'{path}: {"; ".join(faults)}.')
    return texts


def format_page(tables: Tables, texts: Texts) -> str:
    """Return the text of a page."""
    words = texts['words']
    parts = [words['head']]
    for name, table in tables.items():
        parts += [f'## {words["heading"]}\n'] if name == SHARED else \
            [f'## {name}\n', f'{words["own"]}\n']
        parts.append(format_table(table, {**texts[SHARED], **texts[name]}, words))
    return '\n'.join(parts)


def format_table(table: dict[str, Option], helps: dict[str, str], words: dict[str, str]) -> str:
    """Return a Markdown table of {key: Option}. helps: {key: what it is}."""
    rows = [words['columns'], '|---|---|---|---|---|']
    for key, option in table.items():
        cells = (f'`{key}`', ', '.join(f'`-{flag}`' for flag in option.flags),
                 f'`{format_default(option)}`', option.describe_values(words), helps[key])
        rows.append('| ' + ' | '.join(cell.replace('|', r'\|') for cell in cells) + ' |')
    return '\n'.join(rows) + '\n'


def format_default(option: Option) -> str:
    """Return the default as it is written in -opts; the digits that a person would write."""
    if isinstance(option.default, list):
        return f'[{", ".join(_format(item) for item in option.default)}]'
    return _format(option.default)


def _format(value):
    if isinstance(value, float) and value != float(f'{value:.6g}'):
        return f'{value:.6g}'
    return '""' if value == '' else str(value)


def main() -> None:
    """Write both pages, or neither."""
    for path, text in format_pages().items():
        with open(path, 'w', encoding='utf-8') as file:
            file.write(text)


if __name__ == '__main__':
    sys.exit(report_errors(main))
