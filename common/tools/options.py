"""docs/options.md: every option of the shared code and of each model directory, as tables.

    python -m common.tools.options          # from the repository's root: write it anew
"""

import os

from common.config import Options
from common.option import Option, list_options
from common.project import list_projects

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PAGE = os.path.join(ROOT, 'docs', 'options.md')

HEAD = """# Options

Made by `python -m common.tools.options` from the lines of `common/config.py` and of each model's
`config.py`. A yaml file, a flag, or `-opts KEY VALUE` sets an option; the later wins. A value
that the run does not read is named in its log.
"""


def format_page() -> str:
    """Return the text of docs/options.md."""
    shared = list_options(Options)
    parts = [HEAD, '## Shared by all models\n', format_table(shared)]
    for project in list_projects():
        own = list_options(project.options)
        changed = {key: option for key, option in own.items() if shared.get(key) != option}
        parts += [f'## {project.name}\n', "The model's own, and those with another default.\n",
                  format_table(changed)]
    return '\n'.join(parts)


def format_table(options: dict[str, Option]) -> str:
    """Return a Markdown table of {key: Option}."""
    rows = ['| option | flag | default | values | what it is |', '|---|---|---|---|---|']
    for key, option in options.items():
        cells = (f'`{key}`', ', '.join(f'`-{flag}`' for flag in option.flags),
                 f'`{format_default(option)}`', option.describe_values(), option.help)
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


if __name__ == '__main__':
    with open(PAGE, 'w', encoding='utf-8') as file:
        file.write(format_page())
