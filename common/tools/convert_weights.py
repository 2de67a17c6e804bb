"""Writes the weights of any checkpoint to a .pdparams or .safetensors, verified by reading back.

    python convert_weights.py FILE -o model.pdparams        for this project and PaddleViT
    python convert_weights.py FILE -o model.safetensors     the same, without a pickle
    python convert_weights.py FILE -o timm.safetensors -to timm
"""

import json
import os
import pickle
import sys

import numpy as np

from common.cli import FlagParser
from common.errors import UserError, report_errors
from common.project import Project
from common.weights import safetensors_file
from common.weights.load import to_float32
from common.weights.read import Weights, list_first, read_weights
from common.weights.registry import resolve
from common.weights.safe_pickle import NAME_TABLE

PADDLE = 'paddle'           # the target that keeps our names and layout


def convert(project: Project, source: str | os.PathLike, output: str | os.PathLike,
            target: str = PADDLE, use_ema: bool = True,
            overwrite: bool = False) -> dict[str, np.ndarray]:
    """Write a checkpoint's weights as float32 to `output`; return {name: ndarray} as written.

    source: as for load_pretrained. output: ending in .pdparams or .safetensors.
    target: 'paddle' (our names), or a key of project.targets (theirs, .safetensors only).
    The source's numerics are recorded in the file. It appears under its name
    only after what was written has been read back and compared bit by bit.
    Raises UserError.
    """
    weights, arrays = read_arrays(project, source, target, use_ema)
    check_output(output, target, overwrite)
    record = {**weights.numerics, 'grid_size': weights.grid_size, 'num_heads': weights.num_heads}
    root, ending = os.path.splitext(os.fspath(output))
    temporary = f'{root}.writing{ending}'
    try:
        if ending == '.pdparams':
            _write_pdparams(temporary, arrays, record)
        else:
            metadata = {'format': 'pd' if target == PADDLE else 'pt',
                        'numerics': json.dumps(record)}
            safetensors_file.write(temporary, arrays, metadata)
        _verify(temporary, weights, project)
        os.replace(temporary, output)
    except OSError as error:
        raise UserError(f'Cannot write {output}: {error.strerror or error}.') from None
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)
    return arrays


def read_arrays(project: Project, source: str | os.PathLike, target: str = PADDLE,
                use_ema: bool = True) -> tuple[Weights, dict[str, np.ndarray]]:
    """Return (Weights, {name under `target`: float32 ndarray}). Raises UserError."""
    weights = read_weights(resolve(source, project), use_ema, project)
    if weights.leftover:
        raise UserError(f'{weights.path} ({weights.format}) holds tensors that no model '
                        f'here has: {list_first(weights.leftover)}.')
    for name, tensor in weights.tensors.items():
        if not tensor.fits or any(array.dtype.kind != 'f' for array in tensor.arrays):
            raise UserError(
                f'{weights.path} ({weights.format}) is damaged: {name} cannot be made of '
                + ', '.join(f'{origin} {list(array.shape)} {array.dtype}'
                            for origin, array in zip(tensor.origins, tensor.arrays)) + '.')
    arrays = {name: to_float32(tensor.get()) for name, tensor in weights.tensors.items()}
    if target == PADDLE:
        return weights, arrays
    if any(name.startswith(project.before_head) for name in arrays):
        raise UserError(f'{weights.path} has pre-logits, which {target} leaves out: its '
                        f'logits would differ. Convert to -to {PADDLE}.')
    try:
        converted = project.targets[target].convert_back(arrays)
    except KeyError as error:
        raise UserError(f'{weights.path} ({weights.format}) has {error.args[0]}, which '
                        f'{target} has no name for.') from None
    except (ValueError, IndexError) as error:
        raise UserError(f'{weights.path} ({weights.format}) is damaged: its shapes are not those '
                        f'of {target} ({error}).') from None
    return weights, {name: np.ascontiguousarray(array) for name, array in converted.items()}


def check_output(output: str | os.PathLike, target: str, overwrite: bool) -> None:
    """Raise UserError if the output's name does not fit the target, or exists."""
    ending = os.path.splitext(os.fspath(output))[1]
    if ending not in ('.pdparams', '.safetensors'):
        raise UserError(f'{output}: the output must end in .pdparams or .safetensors.')
    if target != PADDLE and ending != '.safetensors':
        raise UserError(f'{output}: -to {target} writes .safetensors.')
    if os.path.exists(output) and not overwrite:
        raise UserError(f'{output} exists. Choose another name, or add -overwrite.')


def _write_pdparams(path, arrays, record):
    """Write what paddle.save does of a state dict, then `record`, which paddle.load ignores."""
    table = {name: name for name in arrays}
    with open(path, 'wb') as file:
        pickle.dump({**arrays, NAME_TABLE: table}, file, protocol=4)
        pickle.dump({'numerics': record}, file, protocol=4)


def _verify(path, weights, project):
    """Raise UserError if reading `path` does not give the weights back."""
    written = read_weights(path, project=project)
    same = set(written.tensors) == set(weights.tensors) and all(
        written.tensors[name].get().tobytes()
        == np.ascontiguousarray(tensor.get(), np.float32).tobytes()
        for name, tensor in weights.tensors.items())
    if not same or written.numerics != weights.numerics:
        raise UserError(f'{path}: what was read back differs from what was written. Is the disk '
                        'in order?')


def main(project: Project, argv: list[str] | None = None) -> int:
    """Run convert_weights.py; return the exit code.

    argv: arguments without the script's name; None: sys.argv's.
    """
    return report_errors(_run, project, sys.argv[1:] if argv is None else argv)


def _run(project, argv):
    options = _parse_arguments(project, argv)
    if not options.output and not options.list:
        raise UserError('Say where to write with -o FILE, or use -list.')
    if options.list or options.dry_run:
        weights, arrays = read_arrays(project, options.source, options.to, not options.no_ema)
        if options.list:
            for name, array in arrays.items():
                print(f'{name}  {list(array.shape)}')
        if options.output:
            check_output(options.output, options.to, options.overwrite)
            print(f'Would write {options.output}.')
        print(_summarize(weights, arrays))
        return
    arrays = convert(project, options.source, options.output, options.to, not options.no_ema,
                     options.overwrite)
    print(_summarize(read_weights(options.output, project=project), arrays))
    print(f'Wrote {options.output} and compared it with the source bit by bit.')


def _parse_arguments(project, argv):
    parser = FlagParser(
        prog='convert_weights.py',
        description='Converts the weights of any known format, and checks what it has written.')
    parser.add_argument('source', help='file, Hugging Face folder, or name of released weights')
    parser.add_argument('-o', '--output', help='.pdparams or .safetensors')
    parser.add_argument('-to', '--to', choices=(PADDLE, *project.targets), default=PADDLE,
                        help='whose names and layout (default: paddle, those of PaddleViT)')
    parser.add_argument('-list', '--list', action='store_true',
                        help='print every tensor; write nothing')
    parser.add_argument('-dry_run', '--dry_run', '--dry-run', action='store_true',
                        help='convert and check everything, but write nothing')
    parser.add_argument('-no_ema', '--no_ema', action='store_true',
                        help='take the raw weights of a training checkpoint, not the averaged')
    parser.add_argument('-overwrite', '--overwrite', action='store_true')
    return parser.parse_args(argv)


def _summarize(weights, arrays):
    count = sum(array.size for array in arrays.values())
    numerics = ', '.join(f'{name} {value}' for name, value in weights.numerics.items())
    return (f'{weights.format}: {len(arrays)} tensors, {count:,} numbers'
            f'{"; " if numerics else ""}{numerics}.')
