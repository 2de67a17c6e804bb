"""Hostile configs: yaml files, flags and -opts that nobody would write, from a seed."""

import contextlib
import glob
import io
import os
import random
import resource
import signal
import time
from collections.abc import Iterator
from types import SimpleNamespace

from common.cli import list_flags, parse_command_line
from common.errors import report_errors
from common.option import Option, list_options
from common.project import Project

WAITING = 600               # seconds, after which a call is taken to hang
TEXTS = [
    '', '0', '-1', '1', '2', '3', '0.5', '1e-3', '-0.0', '1e-320', '1e308', '1e999', 'nan', '-inf',
    '2147483647', '2147483648', '9223372036854775807', '9' * 30, '9' * 5000, '1_0', '0x10', '0777',
    'true', 'None', 'null', 'auto', 'cpu', 'gpu:99', '1j', '1:30', '2024-01-01',
    '[]', '{}', '[1]', '[1, 2]', '[2, 1]', '[0.5, 1.5]', '[0.9, 1.0]', '[0.9, 0.999]', '[1e308]',
    '["a"]', '[1, "a"]', '[[1]]', '[None]', '["balanced"]', '{[1]: 2}', '{1: 2}',
    '[' * 300, '(' * 300, '-' * 300 + '1', 'b"a"', "'", '"', '\\', '= =', '*', '&a', '*a',
    '!!int x', '²', '٣', '\0', '\x7f', '\ud800', 'é', '中文', 'a' * 10_000,
    '~', '/', '/dev/zero', '../..', '$HOME']
PIECES = [
    '*a', '&a ', '<<: ', '!!python/object/apply:os.system [x]', '---\n', '...\n', '%YAML 9.9\n',
    '{', '}', '[', ']', ': ', '- ', '? ', '| ', '> ', '\t', '\0', '\r', '\ufeff', '#', '"', "'",
    'BASE: [a.yaml]\n', 'BASE: 1\n', 'TRAIN:\n', 'TRAIN: 1\n', '[' * 2000, '{a: ' * 500, '9' * 5000]


def draw_command_lines(project: Project, folder: str, count: int, seed: int) -> Iterator[list[str]]:
    """Yield `count` command lines; yaml files are written to `folder`, one at a time."""
    rng = random.Random(seed)
    options = list_options(project.options)
    flags = [flag for option in list_flags(project.options).values() for flag in option.flags]
    path = os.path.join(folder, 'fuzz.yaml')
    with_yaml = sorted(glob.glob(os.path.join(project.folder, 'configs', '*.yaml')))
    for number in range(count):
        argv = []
        if number % 2:
            with open(path, 'wb') as file:
                file.write(mutate(rng, with_yaml) if number % 4 == 1 else draw_yaml(rng, options))
            argv.append(f'-cfg={path}')
        argv += [f'-{rng.choice([*flags, "opts", "x"])}={draw_text(rng)}'
                 for _ in range(rng.choice([0, 0, 1, 2]))]
        for _ in range(rng.choice([0, 1, 1, 3])):
            argv += ['-opts', draw_key(rng, options), draw_text(rng)]
        yield argv


def draw_key(rng: random.Random, options: dict[str, Option]) -> str:
    """Return an option's key, or something like one."""
    key = rng.choice(list(options))
    return rng.choice([key] * 9 + [key.lower(), key.rsplit('.', 1)[0], key + '.X', '.', '',
                                   draw_text(rng)])


def draw_text(rng: random.Random) -> str:
    """Return a value as one would never write it."""
    text = rng.choice(TEXTS)
    return rng.choice([text, text, text, f'[{text}, {rng.choice(TEXTS)}]', text[::-1]])


def draw_yaml(rng: random.Random, options: dict[str, Option]) -> bytes:
    """Return yaml of random options in their groups."""
    lines = []
    for _ in range(rng.randrange(1, 6)):
        *groups, name = draw_key(rng, options).split('.')
        for depth, group in enumerate(groups):
            lines.append(f'{"  " * depth}{group}:')
        lines.append(f'{"  " * len(groups)}{name}: {draw_text(rng)}')
    return '\n'.join(lines).encode('utf-8', 'surrogatepass')


def mutate(rng: random.Random, paths: list[str]) -> bytes:
    """Return one of the project's yaml files with a few changes."""
    with open(rng.choice(paths), 'rb') as file:
        content = bytearray(file.read())
    for _ in range(rng.randrange(1, 8)):
        place = rng.randrange(len(content) + 1)
        change = rng.randrange(5)
        if change == 0:
            content[place:place] = rng.choice(PIECES).encode()
        elif change == 1 and content:
            content[place % len(content)] = rng.randrange(256)
        elif change == 2:
            del content[place:place + rng.randrange(40)]
        elif change == 3:
            content[place:place] = content[place:place + rng.randrange(400)]
        else:
            lines = bytes(content).split(b'\n')
            content = bytearray(b'\n'.join(lines + lines[-5:]))
    return bytes(content)


def parse(project: Project, argv: list[str]) -> SimpleNamespace:
    """Read a command line as the scripts do; return what watch does."""
    def work():
        parse_command_line(project, argv, 'main_single_gpu.py')
    return watch(lambda: report_errors(work))


def watch(function, limit: int = 10) -> SimpleNamespace:
    """Call a function that returns an exit code; return code, error, seconds and grown (bytes).

    limit, seconds: of the processor, which other work on the machine does not lengthen.
    """
    def give_up(number, frame):
        raise TimeoutError(f'no end after {limit} s of the processor, or {WAITING} in all')
    errors = io.StringIO()
    before, started = _peak_bytes(), time.process_time()
    previous = {number: signal.signal(number, give_up)
                for number in (signal.SIGALRM, signal.SIGPROF)}
    signal.alarm(WAITING)
    signal.setitimer(signal.ITIMER_PROF, limit)
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            try:
                code = function()
            except SystemExit as stop:              # -h
                code = stop.code
    finally:
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        for number, handler in previous.items():
            signal.signal(number, handler)
    return SimpleNamespace(code=code, error=errors.getvalue(), grown=_peak_bytes() - before,
                           seconds=time.process_time() - started)


def _peak_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def check_command_lines(project: Project, folder, count: int, seed: int) -> int:
    """Every command line must give a config or exit code 2 and one short line; return how many do.

    Nor may one take 10 seconds, or memory in proportion to what it unfolds to.
    """
    read = 0
    for argv in draw_command_lines(project, str(folder), count, seed):
        result = parse(project, argv)
        where = f'seed {seed}: {[part[:99] for part in argv]}: {result.error[:999]}'
        assert result.code in (0, 2), f'{result.code}: {where}'
        assert result.grown < 512 << 20 and result.seconds < 10, where
        if result.code == 2:
            lines = result.error.strip().split('\n')
            assert lines[0].startswith('error: ') and len(lines) <= 2, where
            assert len(result.error) < 1500 + 2 * len(str(folder)), where
            assert 'Traceback' not in result.error, where
        read += result.code == 0
    return read


TINY = {
    'DATA.DATASET': 'imagefolder', 'DATA.IMAGE_SIZE': 32, 'DATA.BATCH_SIZE': 4,
    'DATA.NUM_WORKERS': 0, 'MODEL.NUM_CLASSES': 3, 'MODEL.EMBED_DIM': 16, 'MODEL.DEPTH': 1,
    'MODEL.NUM_HEADS': 2, 'TRAIN.NUM_STEPS': 2, 'DEVICE': 'cpu', 'REPORT_FREQ': 1,
}
# Options that say how long a run is, how large, or where it is: large ones are what was asked for.
SIZES = {
    'DATA.IMAGE_SIZE', 'DATA.NUM_WORKERS', 'DATA.DATASET', 'DATA.DATA_PATH', 'TRAIN.NUM_STEPS',
    'TRAIN.NUM_EPOCHS', 'TRAIN.COOLDOWN_EPOCHS', 'TRAIN.ACCUM_ITER', 'MODEL.DEPTH',
    'MODEL.EMBED_DIM', 'MODEL.NUM_HEADS', 'MODEL.TOKEN_DIM', 'MODEL.MLP_RATIO', 'SAVE', 'DEVICE',
    'MODEL.ATTN_HEAD_SIZE', 'MODEL.REPRESENTATION_SIZE', 'MODEL.HYBRID', 'MODEL.HYBRID_WIDTH',
    'MODEL.NUM_CLASSES', 'BASE', 'WATCHDOG_SECONDS'}


def draw_value(rng: random.Random, option: Option):
    """Return a value that an option may well take: at its bounds, its choices, or in between."""
    if option.choices:
        return rng.choice(option.choices)
    if option.type is bool:
        return rng.choice([True, False])
    if option.type is str:
        return rng.choice(['', 'a', 'v0', 'rand-m9', 'backbone', '1', '/no/such', 'é'])
    if option.type is list:
        count = option.count or 3
        values = [_draw_number(rng, option, option.each or float) for _ in range(count)]
        return sorted(values) if option.is_range else values
    return _draw_number(rng, option, option.type)


def _draw_number(rng, option, kind):
    bounds = [bound for bound in (option.at_least, option.above, option.at_most, option.below)
              if bound is not None and abs(bound) < 1e6] or [0, 1]
    if kind is int:
        return rng.choice([int(bound) + step for bound in bounds for step in (0, 0, 1)])
    if kind is str:
        return 'a'
    low, high = min(bounds), max([*bounds, 1])
    largest = float(high) if option.at_most is not None or option.below is not None else 1e30
    return rng.choice([float(low), float(high), largest, rng.uniform(low, high), 1e-12, 1e-3,
                       0.999999])


def check_runs(project: Project, folder, count: int, seed: int) -> dict[int, int]:
    """Tiny runs with odd options must end with 0, 1 or 2 and no traceback; return {code: runs}."""
    from common.run.launch import run_single
    from tests.support.data_folders import make_image

    for part in ('train', 'val'):
        for number in range(6):
            make_image(folder / 'data' / part / 'abc'[number % 3] / f'{number}.png',
                       seed=[len(part), number])
    rng = random.Random(seed)
    options = {key: option for key, option in list_options(project.options).items()
               if key not in SIZES}
    codes = {0: 0, 1: 0, 2: 0}
    base = {key: value for key, value in TINY.items() if key in list_options(project.options)}
    for number in range(count):
        changes = {key: draw_value(rng, options[key])
                   for key in rng.sample(list(options), rng.choice([1, 2, 4, 8]))}
        given = {**base, 'DATA.DATA_PATH': folder / 'data', **changes}
        argv = [f'-output={folder}/runs', '-opts',
                *(str(part) for pair in given.items() for part in pair)]
        result = watch(lambda argv=argv: run_single(project, argv), limit=60)
        where = f'seed {seed}, run {number}: {changes}'
        assert result.code in codes, where
        assert 'Traceback' not in result.error, f'{where}\n{result.error[-3000:]}'
        assert result.code == 0 or result.error.startswith('error: '), where + result.error[:999]
        codes[result.code] += 1
    return codes
