"""Curves of one or several runs in one picture: loss, accuracy, learning rate, throughput."""

import contextlib
import io
import json
import os
import sys
from collections.abc import Iterable, Sequence

from common.cli import FlagParser
from common.errors import UserError, report_errors
from common.files import note_reads, open_regular, read_lines, refuse_overwriting
from common.terminal import say
from common.yaml_text import read_yaml

METRICS = 'metrics.jsonl'
# What makes the training loss higher than that of the validation, and the options that do it.
SOFTENED = {'label smoothing': ('SMOOTHING',),
            'mixup': ('MIXUP_ALPHA', 'CUTMIX_ALPHA', 'CUTMIX_MINMAX')}
REFERENCE_COLOUR = '0.6'                # grey
STYLES = {'-': 'training', '--': 'validation', ':': 'validation, averaged weights'}


def main(argv: list[str] | None = None) -> int:
    """Run the script: plot.py RUN [RUN ...] [-o FILE]; return the exit code.

    argv: arguments without the script's name; None: those of the command line.
    """
    return report_errors(_run, sys.argv[1:] if argv is None else argv)


def _run(argv):
    parser = FlagParser(
        prog='plot.py', description='Draw the curves of runs over each other as one PNG.')
    parser.add_argument('runs', nargs='+', metavar='RUN', help='run folder, or its metrics.jsonl')
    parser.add_argument('-o', '-output', '--output', default='curves.png', metavar='FILE',
                        help='picture to write (default: curves.png)')
    parser.add_argument('-against', '--against', metavar='FILE', default=None,
                        help='curves to compare with, in grey: another metrics.jsonl, such as '
                             'those of docs/curves')
    arguments = parser.parse_args(argv)
    names, reference = name_runs(arguments.runs), None
    with note_reads() as read:
        runs = [read_metrics(path) for path in arguments.runs]
        if arguments.against is not None:
            reference = name_runs([arguments.against])[0], read_metrics(arguments.against)
    refuse_overwriting(arguments.output, read)
    draw_curves(runs, names, arguments.output, describe_training(arguments.runs), reference)
    say(f'Wrote {arguments.output}')
    if reference is not None:
        for name, events in zip(names, runs):
            say(compare_accuracy(name, events, *reference))


def read_metrics(path: str) -> list[dict]:
    """Return the events of a run, a list of dicts. Raises UserError if there are none."""
    if os.path.isdir(path):
        path = os.path.join(path, METRICS)
    events = []
    try:
        with io.TextIOWrapper(open_regular(path, io.DEFAULT_BUFFER_SIZE), 'utf-8') as file:
            for number, line in enumerate(read_lines(file, path), 1):
                try:
                    event = json.loads(line)
                except ValueError:
                    if line.endswith('\n'):
                        raise UserError(f'{path}, line {number}: not JSON.') from None
                    continue            # a line that the run is writing at this moment
                if isinstance(event, dict):
                    events.append(event)
    except OSError as error:
        raise UserError(f'Cannot read {path}: {error.strerror}. Give a run folder, with '
                        f'{METRICS} in it.') from None
    except UnicodeDecodeError:
        raise UserError(f'{path} is not a {METRICS}.') from None
    if not any('update' in event for event in events):
        raise UserError(f'{path} has no event yet: the run has neither reported nor validated.')
    return events


def name_runs(paths: Sequence[str]) -> list[str]:
    """Return a short name for each run, by which they differ.

    It is the run's folder, of a file with another name than METRICS its name without the ending.
    """
    stems = []
    for path in map(os.path.abspath, paths):
        folder, name = os.path.split(path)
        is_metrics = name == METRICS and os.path.isfile(path)
        stems.append(folder if is_metrics else path.removesuffix('.jsonl'))
    names = [os.path.basename(stem) for stem in stems]
    if len(set(names)) < len(names):
        names = [os.path.join(*stem.split(os.sep)[-2:]) for stem in stems]
    return names if len(set(names)) == len(names) else list(paths)


def compare_accuracy(name: str, events: Iterable[dict], reference_name: str,
                     reference: Iterable[dict]) -> str:
    """Return one line: accuracy of a run and of the reference at the last update both validated."""
    mine = dict(zip(*select(events, 'eval', 'acc1', 'model')))
    theirs = dict(zip(*select(reference, 'eval', 'acc1', 'model')))
    shared = sorted(mine.keys() & theirs.keys())
    if not shared:
        return f'{name} and {reference_name} were validated at no update in common.'
    update = shared[-1]
    return (f'{name}: acc1 {mine[update]:.2f} at update {update}, {reference_name} '
            f'{theirs[update]:.2f} ({mine[update] - theirs[update]:+.2f})')


def describe_training(paths: Sequence[str]) -> str:
    """Return what the training loss is of: "training, with label smoothing and mixup".

    Read from the runs' config.yaml; a run without one that can be read adds nothing.
    """
    found = []
    for path in paths:
        folder = path if os.path.isdir(path) else os.path.dirname(path)
        options = {}
        with contextlib.suppress(UserError):
            options = read_yaml(os.path.join(folder, 'config.yaml')).get('TRAIN') or {}
        for word, keys in SOFTENED.items():
            if isinstance(options, dict) and word not in found and any(map(options.get, keys)):
                found.append(word)
    return f'training, with {" and ".join(found)}' if found else 'training'


def select(events: Iterable[dict], event: str, key: str,
           weights: str | None = None) -> tuple[list[float], list[float]]:
    """Return (updates, values) of one curve. weights: "model" or "ema", for evaluations."""
    chosen = [line for line in events if line.get('event') == event and key in line
              and (weights is None or line.get('weights', 'model') == weights)]
    return [line['update'] for line in chosen], [line[key] for line in chosen]


def draw_curves(runs: Sequence[list[dict]], names: Sequence[str], path: str,
                training: str = 'training',
                reference: tuple[str, list[dict]] | None = None) -> None:
    """Draw runs (lists of events) over each other and write a PNG.

    training: what the legend calls the curve of the training loss. reference: (name, events) of
    what is drawn in grey beneath them. Raises UserError if matplotlib is missing or the file
    cannot be written.
    """
    try:
        from matplotlib.figure import Figure  # no display, no global state
        from matplotlib.lines import Line2D
    except ImportError:
        raise UserError('plot.py needs the package matplotlib: pip install matplotlib') from None
    figure = Figure(figsize=(11, 7.5), layout='constrained')
    (loss, accuracy), (rate, speed) = figure.subplots(2, 2, sharex=True)
    styles = {loss: set(), accuracy: set()}         # of the lines that a panel has
    curves = [(name, f'C{number % 10}', events)
              for number, (name, events) in enumerate(zip(names, runs))]
    if reference is not None:
        curves.insert(0, (reference[0], REFERENCE_COLOUR, reference[1]))
    for _, colour, events in curves:
        # Short runs have no report between two epochs.
        often = 'train_step' if len(select(events, 'train_step', 'loss')[0]) > 1 else 'train_epoch'
        for axes, event, key, weights, style in (
                (loss, often, 'loss', None, '-'), (loss, 'eval', 'loss', 'model', '--'),
                (loss, 'eval', 'loss', 'ema', ':'), (accuracy, 'eval', 'acc1', 'model', '--'),
                (accuracy, 'eval', 'acc1', 'ema', ':'), (rate, often, 'lr', None, '-'),
                (speed, 'train_step', 'images_per_second', None, '-')):
            updates, values = select(events, event, key, weights)
            if updates:
                axes.plot(updates, values, style, color=colour, linewidth=1.3,
                          marker='.' if len(updates) < 40 else None, markersize=4)
                styles.get(axes, set()).add(style)
    for axes, title, unit in ((loss, 'Loss', 'cross entropy'),
                              (accuracy, 'Validation accuracy', 'top-1, percent'),
                              (rate, 'Learning rate', 'rate'),
                              (speed, 'Training throughput', 'images per second')):
        axes.set_title(title)
        axes.set_ylabel(unit)
        axes.grid(alpha=0.3)
        if not axes.lines:
            axes.text(0.5, 0.5, 'not recorded', transform=axes.transAxes, ha='center')
    for axes, present in styles.items():
        lines = [Line2D([], [], color='black', linestyle=style,        # type: ignore[arg-type]
                        label=label)
                 for style, label in {**STYLES, '-': training}.items() if style in present]
        if lines:
            axes.legend(handles=lines, fontsize='small')
    for axes in (rate, speed):
        axes.set_xlabel('optimizer update')
    speed.set_ylim(bottom=0)
    rate.ticklabel_format(axis='y', style='sci', scilimits=(-2, 2))
    figure.legend(handles=[Line2D([], [], color=colour, label=name) for name, colour, _ in curves],
                  loc='outside upper center', ncols=min(len(curves), 3))
    try:
        figure.savefig(path, dpi=110)
    except (OSError, ValueError) as error:
        reason = getattr(error, 'strerror', None) or error
        raise UserError(f'Cannot write {path}: {reason}.') from None
