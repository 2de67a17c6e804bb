"""The outcome of checks: a line each, and a record of them all."""

import json
import os
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from common.project import Project

PASS, FAIL, SKIP = 'PASS', 'FAIL', 'SKIP'


class CheckFailed(Exception):
    """What a check has found is wrong; the text says what was found and what was expected.

    figures: for the record, what helps to find out why.
    """

    def __init__(self, text: str, figures: dict[str, Any] | None = None):
        super().__init__(text)
        self.figures = figures or {}


class CheckSkipped(Exception):
    """The check cannot be made here; the text says why."""


@dataclass
class Row:
    """The outcome of one check. figures: numbers and texts, for the record."""

    group: str
    name: str
    outcome: str
    text: str
    seconds: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)

    def __str__(self):
        text = self.text if len(self.text) <= 300 else f'{self.text[:300]}...'
        return f'{self.outcome}  {self.group}: {self.name}: {text} ({self.seconds:.1f} s)'


@dataclass(frozen=True)
class Context:
    """What every check is given. device: "gpu:0", say; processes: of the checks that start some.

    folder: free, for what the checks write. has_speed: also measure how fast it is.
    """

    project: Project
    device: str
    processes: int
    folder: str
    has_speed: bool = True

    @property
    def kind(self) -> str:
        """The kind of the device: "cpu", "gpu" or another accelerator."""
        return self.device.partition(':')[0]


# A check returns what it says of the device, and figures for the record.
Check = Callable[[Context], tuple[str, dict[str, Any]]]


def run_checks(group: str, checks: Iterable[tuple[str, Check]], context: Context,
               path: str) -> None:
    """Make the checks of a group; write a line of JSON each to a file, and print it for people.

    Before each check its name is written, so that the file tells where the process ended.
    """
    with open(path, 'a', encoding='utf-8') as file:
        for name, check in checks:
            file.write(json.dumps({'started': name}) + '\n')
            file.flush()
            row = run_check(group, name, check, context)
            print(row, flush=True)
            file.write(json.dumps(asdict(row)) + '\n')
            file.flush()


def run_check(group: str, name: str, check: Check, context: Context) -> Row:
    """Make one check; whatever it raises is its outcome."""
    started = time.perf_counter()
    try:
        text, figures = check(context)
        outcome = PASS
    except CheckSkipped as reason:
        outcome, text, figures = SKIP, str(reason), {}
    except CheckFailed as failure:
        outcome, text, figures = FAIL, str(failure), failure.figures
    except Exception as error:          # of Paddle, or a mistake of ours: both must be seen
        last = str(error).strip().splitlines() or ['']
        outcome, text = FAIL, f'{type(error).__name__}: {last[-1]}'
        figures = {'traceback': traceback.format_exc()[-4000:]}
    return Row(group, name, outcome, text, round(time.perf_counter() - started, 2), figures)


def read_rows(path: str) -> tuple[list[Row], str | None]:
    """Return what run_checks has written, and the name of a check that did not come to its end."""
    rows, started = [], None
    if not os.path.exists(path):
        return rows, started
    with open(path, encoding='utf-8') as file:
        for line in file:
            values = json.loads(line)
            if 'started' in values:
                started = values['started']
            else:
                rows.append(Row(**values))
                started = None
    return rows, started
