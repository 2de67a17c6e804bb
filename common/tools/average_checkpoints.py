"""Averages the weights of several checkpoints of one model: a soup (arXiv 2203.05482).

    python average_checkpoints.py RUN_A/best RUN_B/best RUN_C/best -o soup.pdparams

What is averaged should come from the same pretrained weights: fine-tuned with other seeds, rates or
augmentation, or several checkpoints of one run. The first checkpoint's record (config, class names,
preprocessing) goes with the average.
"""

import os
import sys

import numpy as np

from common.cli import FlagParser
from common.errors import UserError, report_errors
from common.files import note_reads, refuse_overwriting
from common.project import Project
from common.terminal import say
from common.tools.convert_weights import check_output, read_arrays
from common.weights.containers import open_container
from common.weights.read import list_first
from common.weights.registry import resolve

RECORD = ('config', 'class_names', 'numerics', 'preprocessing')


def average_checkpoints(project: Project, sources: list[str], output: str,
                        use_ema: bool = True, overwrite: bool = False) -> dict[str, np.ndarray]:
    """Write the mean of the weights of several checkpoints; return {name: float32 ndarray}.

    sources: as for load_pretrained. output: ending in .pdparams; it appears once it is whole and
    has been read back. Raises UserError for checkpoints of other models or other classes.
    """
    check_output(output, 'paddle', overwrite)
    if not output.endswith('.pdparams'):
        raise UserError(f'{output}: an average is written as .pdparams.')
    sums: dict[str, np.ndarray] = {}
    record = None
    for source in sources:
        with note_reads() as read:
            weights, arrays = read_arrays(project, source, use_ema=use_ema)
            tree = open_container(resolve(source, project)).tree
        refuse_overwriting(output, read)
        if record is None:
            record = {key: tree[key] for key in RECORD if tree.get(key) is not None}
            record.setdefault('numerics', {
                **weights.numerics, 'grid_size': weights.grid_size,
                'num_heads': weights.num_heads})
            sums = {name: array.astype(np.float64) for name, array in arrays.items()}
            continue
        _check_same(sums, arrays, sources[0], source)
        names = tree.get('class_names')
        if names and record.get('class_names') and list(names) != list(record['class_names']):
            raise UserError(f'{source} has other classes than {sources[0]}, or in another order: '
                            f'{list_first(names)}.')
        for name, array in arrays.items():
            sums[name] += array
    means = {name: (total / len(sources)).astype(np.float32) for name, total in sums.items()}
    _write(output, {'model': means, **record})
    return means


def _check_same(sums, arrays, first, source):
    """Raise UserError unless two checkpoints have the same tensors."""
    wrong = [name for name in {*sums, *arrays}
             if name not in sums or name not in arrays or sums[name].shape != arrays[name].shape]
    if wrong:
        raise UserError(f'{source} is of another model than {first}, or of other classes: they '
                        f'differ in {list_first(sorted(wrong))}.')


def _write(output, tree):
    import paddle  # here: -h and wrong input do without it

    temporary = f'{output}.writing.pdparams'
    try:
        paddle.save(tree, temporary)
        written = open_container(temporary).tree['model']
        if any(written[name].tobytes() != array.tobytes()
               for name, array in tree['model'].items()):
            raise UserError(f'{output}: what was read back differs from what was written. Is the '
                            'disk in order?')
        os.replace(temporary, output)
    except OSError as error:
        raise UserError(f'Cannot write {output}: {error.strerror or error}.') from None
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def main(project: Project, argv: list[str] | None = None) -> int:
    """Run average_checkpoints.py; return the exit code.

    argv: arguments without the script's name; None: sys.argv's.
    """
    return report_errors(_run, project, sys.argv[1:] if argv is None else argv)


def _run(project, argv):
    parser = FlagParser(
        prog='average_checkpoints.py', allow_abbrev=False,
        description='Average the weights of several checkpoints of one model (a "soup").')
    parser.add_argument('sources', nargs='+', metavar='CHECKPOINT',
                        help='checkpoints, run folders or files of weights')
    parser.add_argument('-o', '-output', '--output', required=True, metavar='FILE',
                        help='where to write, ending in .pdparams')
    parser.add_flag('no_ema', action='store_true',
                    help='take the raw weights of a training checkpoint, not the averaged')
    parser.add_flag('overwrite', action='store_true', help='write over an existing file')
    options = parser.parse_args(argv)
    if len(options.sources) < 2:
        raise UserError('An average needs two checkpoints or more.')
    means = average_checkpoints(project, options.sources, options.output, not options.no_ema,
                                options.overwrite)
    say(f'Wrote {options.output}: the mean of {len(options.sources)} checkpoints, '
          f'{sum(array.size for array in means.values()):,} numbers.')
