"""Writes the weights of any checkpoint to a .pdparams or .safetensors, verified by reading back.

    python convert_weights.py FILE -o model.pdparams        for this project and PaddleViT
    python convert_weights.py FILE -o model.safetensors     the same, without a pickle
    python convert_weights.py FILE -o timm.safetensors -to timm
    python convert_weights.py FILE -o FOLDER/model.safetensors -to huggingface
"""

import json
import logging
import os
import pickle
import sys

import numpy as np

from common.cli import FlagParser
from common.data.images import show_path
from common.errors import UserError, report_errors
from common.files import note_reads, refuse_overwriting, write_json
from common.project import Project
from common.terminal import say
from common.weights import safetensors_file
from common.weights.load import to_float32
from common.weights.read import Weights, list_first, read_weights
from common.weights.registry import resolve
from common.weights.rules import Format, Written
from common.weights.safe_pickle import NAME_TABLE

logger = logging.getLogger(__name__)

MODEL_FILE = 'model.safetensors'        # which transformers looks for
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
    with note_reads() as read:
        weights, written = convert_names(project, source, target, use_ema)
    check_output(output, target, overwrite, tuple(written.files))
    record = {**weights.numerics, 'grid_size': weights.grid_size, 'num_heads': weights.num_heads}
    root, ending = os.path.splitext(os.fspath(output))
    temporary = f'{root}.writing{ending}'
    beside = [os.path.join(os.path.dirname(os.fspath(output)), name) for name in written.files]
    for path in (os.fspath(output), *beside):
        refuse_overwriting(path, read)
    unfinished = [temporary, *beside]
    try:
        if ending == '.pdparams':
            _write_pdparams(temporary, written.tensors, record)
        else:
            _write_beside(beside, written.files.values())
            metadata = {'format': 'pd' if target == PADDLE else 'pt',
                        'numerics': json.dumps(record)}
            safetensors_file.write(temporary, written.tensors, metadata)
        _verify(temporary, weights, written.ours, project)
        os.replace(temporary, output)
        unfinished = []
    except OSError as error:
        raise UserError(f'Cannot write {output}: {error.strerror or error}.') from None
    finally:
        for path in unfinished:
            if os.path.exists(path):
                os.remove(path)
    for note in written.notes:
        logger.warning('%s', note)
    return written.tensors


def read_arrays(project: Project, source: str | os.PathLike, target: str = PADDLE,
                use_ema: bool = True) -> tuple[Weights, dict[str, np.ndarray]]:
    """Return (Weights, {name under `target`: float32 ndarray}). Raises UserError."""
    weights, written = convert_names(project, source, target, use_ema)
    return weights, written.tensors


def convert_names(project: Project, source: str | os.PathLike, target: str = PADDLE,
                  use_ema: bool = True) -> tuple[Weights, Written]:
    """Return (Weights, the float32 arrays as `target` has them). Raises UserError."""
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
        return weights, Written(arrays, arrays)
    if any(name.startswith(project.before_head) for name in arrays):
        raise UserError(f'{weights.path} has pre-logits, which {target} leaves out: its '
                        f'logits would differ. Convert to -to {PADDLE}.')
    try:
        make = project.targets[target]
        written = Written(make.convert_back(arrays), arrays) if isinstance(make, Format) \
            else make(weights, arrays)
    except KeyError as error:
        raise UserError(f'{weights.path} ({weights.format}) has {error.args[0]}, which '
                        f'{target} has no name for.') from None
    except (ValueError, IndexError) as error:
        raise UserError(f'{weights.path} ({weights.format}) is damaged: its shapes are not those '
                        f'of {target} ({error}).') from None
    written.tensors = {name: np.ascontiguousarray(array)
                       for name, array in written.tensors.items()}
    return weights, written


def check_output(output: str | os.PathLike, target: str, overwrite: bool,
                 beside: tuple[str, ...] = ()) -> None:
    """Raise UserError if the output's name does not fit the target, or exists.

    beside: names of files that are written beside it.
    """
    folder, file = os.path.split(os.fspath(output))
    if beside and file != MODEL_FILE:
        raise UserError(f'{output}: -to {target} writes a folder of {", ".join(beside)} and '
                        f'{MODEL_FILE}: -o FOLDER/{MODEL_FILE}.')
    for name in beside:
        if os.path.exists(os.path.join(folder, name)) and not overwrite:
            raise UserError(f'{os.path.join(folder, name)} exists. Choose another folder, or add '
                            '-overwrite.')
    ending = os.path.splitext(os.fspath(output))[1]
    if ending not in ('.pdparams', '.safetensors'):
        raise UserError(f'{output}: the output must end in .pdparams or .safetensors.')
    if target != PADDLE and ending != '.safetensors':
        raise UserError(f'{output}: -to {target} writes .safetensors.')
    if os.path.exists(output) and not overwrite:
        raise UserError(f'{output} exists. Choose another name, or add -overwrite.')


def _write_beside(paths, contents):
    """Write JSON files, and make their folder."""
    for path, content in zip(paths, contents):
        os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
        write_json(path, content, indent=2)


def _write_pdparams(path, arrays, record):
    """Write what paddle.save does of a state dict, then `record`, which paddle.load ignores."""
    table = {name: name for name in arrays}
    with open(path, 'wb') as file:
        pickle.dump({**arrays, NAME_TABLE: table}, file, protocol=4)
        pickle.dump({'numerics': record}, file, protocol=4)


def _verify(path, weights, expected, project):
    """Raise UserError if reading `path` does not give the expected arrays back.

    A bias of zeros may be missing, or there besides.
    """
    written = read_weights(path, project=project)
    found = {name: tensor.get() for name, tensor in written.tensors.items()}
    same = all(_is_same(found.get(name), expected.get(name)) for name in {*found, *expected})
    if not same or {**written.numerics, **weights.numerics} != written.numerics:
        raise UserError(f'{path}: what was read back differs from what was written. Is the disk '
                        'in order?')


def _is_same(found, expected):
    """Compare two arrays bit by bit; one that is missing stands for zeros."""
    if found is None or expected is None:
        present = expected if found is None else found
        return present.ndim == 1 and not present.any()
    return found.shape == expected.shape and \
        np.ascontiguousarray(found, np.float32).tobytes() == expected.tobytes()


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
        weights, written = convert_names(
            project, options.source, options.to, not options.no_ema)
        arrays = written.tensors
        if options.list:
            for name, array in arrays.items():
                say(f'{show_path(name)}  {list(array.shape)}')
        if options.output:
            check_output(options.output, options.to, options.overwrite, tuple(written.files))
            say(f'Would write {options.output}.')
        say(_summarize(weights, arrays))
        return
    arrays = convert(project, options.source, options.output, options.to, not options.no_ema,
                     options.overwrite)
    say(_summarize(read_weights(options.output, project=project), arrays))
    say(f'Wrote {options.output} and compared it with the source bit by bit.')


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
