"""One command that tells whether a device does all that training needs: gpu_check.py.

Groups of checks run one after the other, each in a process of its own, so that one that ends
in a crash or a hang is a line of the report and not its end.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from types import ModuleType

from common.machine.environment import tune_cpu

tune_cpu()      # before Paddle is imported

import paddle

from common.cli import FlagParser
from common.device_check import commands, environment, numerics, speed, training
from common.device_check.report import FAIL, PASS, SKIP, Context, Row, read_rows, run_checks
from common.errors import UserError, report_errors
from common.machine.device import choose_device
from common.project import Project, load_project

# Groups in their order, and seconds that each may take.
GROUPS: dict[str, tuple[ModuleType, int]] = {
    'environment': (environment, 60), 'numerics': (numerics, 120), 'training': (training, 900),
    'commands': (commands, 900), 'speed': (speed, 400)}
RECORD = 'gpu_check.json'
GRACE_SECONDS = 15              # for a group's process to end those that it has started


def main(project: Project, argv: list[str] | None = None) -> int:
    """Make the checks; return the exit code: 0, or 1 where one has failed.

    argv: arguments without the script's name; None: sys.argv's.
    """
    return report_errors(_run, project, sys.argv[1:] if argv is None else argv)


def _run(project, argv):
    arguments = _parse(argv)
    device = choose_device(arguments.device)
    processes = arguments.nprocs or commands.count_devices(device)
    chosen = arguments.groups.split(',') if arguments.groups else list(GROUPS)
    for name in chosen:
        if name not in GROUPS:
            raise UserError(f'-groups: there is no {name!r}; there are {", ".join(GROUPS)}.')
    try:                            # now, not after minutes
        with open(arguments.output, 'a', encoding='utf-8'):
            pass
    except OSError as error:
        raise UserError(f'Cannot write {arguments.output}: {error.strerror}. Name another file '
                        'with -output.') from None
    if device == 'cpu':
        print('No accelerator: what can be run is run on the CPU.')
    print(f'Checking {project.name} on {device}, {processes} process'
          f'{"es" * (processes != 1)}', flush=True)
    end_on_signals()
    started = time.monotonic()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        context = Context(project, device, processes, folder,
                          has_speed=device != 'cpu' and not arguments.no_speed)
        for name in chosen:
            rows += run_group(name, context, GROUPS[name][1])
    outcome = {kind: sum(row.outcome == kind for row in rows) for kind in (PASS, FAIL, SKIP)}
    record = {'model': project.name, 'device': device, 'processes': processes,
              'arguments': argv, 'date': time.strftime('%Y-%m-%d'),
              'seconds': round(time.monotonic() - started, 1), **outcome,
              'rows': [asdict(row) for row in rows]}
    with open(arguments.output, 'w', encoding='utf-8') as file:
        file.write(json.dumps(record, indent=1, default=str) + '\n')
    if outcome[FAIL]:
        print('What has failed:', *(row for row in rows if row.outcome == FAIL), sep='\n')
    print(f'{outcome[PASS]} passed, {outcome[FAIL]} failed, {outcome[SKIP]} skipped in '
          f'{record["seconds"]:.0f} s. {arguments.output} has it all: please add it to an issue.')
    return 1 if outcome[FAIL] else 0


def _parse(argv):
    parser = FlagParser(
        prog='gpu_check.py', allow_abbrev=False, description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_flag('device', default='auto', metavar='X', help='as of the main scripts')
    parser.add_flag('nprocs', type=int, metavar='N',
                    help='processes of the checks that start several; none: every device')
    parser.add_flag('output', default=RECORD, metavar='FILE', help='the record that is written')
    parser.add_flag('groups', metavar='A,B', help=f'only these of {", ".join(GROUPS)}')
    parser.add_flag('no_speed', action='store_true', help='leave out how fast it is')
    parser.check_names(argv)
    arguments = parser.parse_args(argv)
    if arguments.nprocs is not None and arguments.nprocs < 1:
        raise UserError(f'-nprocs must be above 0, not {arguments.nprocs}.')
    return arguments


def run_group(name: str, context: Context, seconds: int) -> list[Row]:
    """Make a group's checks in a process of its own; return their rows."""
    path = os.path.join(context.folder, f'{name}.jsonl')
    errors = os.path.join(context.folder, f'{name}.txt')
    command = [sys.executable, '-m', 'common.tools.gpu_check', context.project.folder, name,
               context.device, str(context.processes), context.folder, str(int(context.has_speed))]
    root = os.path.dirname(context.project.folder)
    with open(errors, 'wb') as file, subprocess.Popen(
            command, stderr=file, cwd=root, start_new_session=True) as process:
        try:
            code = process.wait(seconds)
            ending = f'the process ended with {describe_code(code)}'
        except subprocess.TimeoutExpired:
            ending, code = f'not done after {seconds} s', None
        finally:
            end_group(process)
    rows, unfinished = read_rows(path)
    if code != 0:
        with open(errors, encoding='utf-8', errors='replace') as said:
            text = said.read()
        last = [line for line in text.strip().splitlines() if line.strip()][-1:]
        row = Row(name, unfinished or 'the process', FAIL, ': '.join([ending, *last]), 0.0,
                  {'stderr': text[-4000:]})
        print(row, flush=True)
        rows.append(row)
    return rows


def end_group(process: subprocess.Popen) -> None:
    """End a group's process, which ends those that it has started, by force if it must be."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def end_on_signals() -> None:
    """Have SIGTERM end this process in good order, so that it leaves no others behind."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


def describe_code(code: int) -> str:
    return f'{signal.Signals(-code).name}' if code < 0 else f'exit code {code}'


def _work(folder, name, device, processes, scratch, has_speed):
    """Be the process of a group."""
    end_on_signals()
    project = load_project(os.path.join(folder, 'project.py'))
    context = Context(project, device, int(processes), scratch, bool(int(has_speed)))
    module = GROUPS[name][0]
    if module is not commands:          # which leaves the device to the processes it starts
        paddle.set_device(device)
    run_checks(name, module.list_checks(context), context, os.path.join(scratch, f'{name}.jsonl'))


if __name__ == '__main__':
    _work(*sys.argv[1:])
