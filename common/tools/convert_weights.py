"""Writes the weights of any checkpoint to a .pdparams or .safetensors, verified by reading back.

    python convert_weights.py FILE -o vit.pdparams          for this project and PaddleViT
    python convert_weights.py FILE -o vit.safetensors       the same, without a pickle
    python convert_weights.py FILE -o timm.safetensors -to timm
"""

import argparse
import json
import os
import pickle
import sys

import numpy as np

from common.errors import RunError, UserError
from common.weights import safetensors_file
from common.weights.checkpoint import list_first, read_checkpoint
from common.weights.formats import t2t, timm
from common.weights.load import make_contiguous
from common.weights.registry import resolve
from common.weights.safe_pickle import NAME_TABLE

# What `-to` takes: the format whose names and layout are written.
TARGETS = {'paddle': None, 'timm': timm.FORMAT, 't2t': t2t.FORMAT}


def convert(source, output, target='paddle', use_ema=True, overwrite=False):
    """Write a checkpoint's weights as float32 to `output`; return {name: ndarray} as written.

    source: as for load_pretrained. output: ending in .pdparams or .safetensors.
    target: 'paddle' (our names), or 'timm' or 't2t' (theirs, .safetensors only).
    The source's numerics are recorded in the file. It appears under its name
    only after what was written has been read back and compared bit by bit.
    Raises UserError.
    """
    checkpoint, arrays = read_arrays(source, target, use_ema)
    check_output(output, target, overwrite)
    record = {**checkpoint.numerics, 'grid_size': checkpoint.grid_size}
    root, ending = os.path.splitext(os.fspath(output))
    temporary = f'{root}.writing{ending}'
    try:
        if ending == '.pdparams':
            _write_pdparams(temporary, arrays, record)
        else:
            metadata = {'format': 'pd' if target == 'paddle' else 'pt',
                        'numerics': json.dumps(record)}
            safetensors_file.write(temporary, arrays, metadata)
        _verify(temporary, checkpoint)
        os.replace(temporary, output)
    except OSError as error:
        raise UserError(f'Cannot write {output}: {error.strerror or error}.') from None
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)
    return arrays


def read_arrays(source, target='paddle', use_ema=True):
    """Return (Checkpoint, {name under `target`: float32 ndarray}). Raises UserError."""
    checkpoint = read_checkpoint(resolve(source), use_ema)
    if checkpoint.leftover:
        raise UserError(f'{checkpoint.path} ({checkpoint.format}) holds tensors that no model '
                        f'here has: {list_first(checkpoint.leftover)}.')
    arrays = {name: make_contiguous(tensor.get())
              for name, tensor in checkpoint.tensors.items()}
    if TARGETS[target] is None:
        return checkpoint, arrays
    pre_logits = [name for name in arrays if name.startswith('pre_logits.')]
    if pre_logits:
        raise UserError(f'{checkpoint.path} has pre-logits, which {target} leaves out: its '
                        'logits would differ. Convert to -to paddle.')
    try:
        converted = TARGETS[target].convert_back(arrays)
    except KeyError as error:
        raise UserError(f'{checkpoint.path} ({checkpoint.format}) has {error.args[0]}, which '
                        f'{target} has no name for.') from None
    return checkpoint, {name: np.ascontiguousarray(array) for name, array in converted.items()}


def check_output(output, target, overwrite):
    """Raise UserError if the output's name does not fit the target, or exists."""
    ending = os.path.splitext(os.fspath(output))[1]
    if ending not in ('.pdparams', '.safetensors'):
        raise UserError(f'{output}: the output must end in .pdparams or .safetensors.')
    if target != 'paddle' and ending != '.safetensors':
        raise UserError(f'{output}: -to {target} writes .safetensors.')
    if os.path.exists(output) and not overwrite:
        raise UserError(f'{output} exists. Choose another name, or add -overwrite.')


def _write_pdparams(path, arrays, record):
    """Write what paddle.save does of a state dict, then `record`, which paddle.load ignores."""
    table = {name: name for name in arrays}
    with open(path, 'wb') as file:
        pickle.dump({**arrays, NAME_TABLE: table}, file, protocol=4)
        pickle.dump({'numerics': record}, file, protocol=4)


def _verify(path, checkpoint):
    """Raise UserError if reading `path` does not give the checkpoint back."""
    written = read_checkpoint(path)
    same = set(written.tensors) == set(checkpoint.tensors) and all(
        written.tensors[name].get().tobytes()
        == np.ascontiguousarray(tensor.get(), np.float32).tobytes()
        for name, tensor in checkpoint.tensors.items())
    if not same or written.numerics != checkpoint.numerics:
        raise UserError(f'{path}: what was read back differs from what was written. Is the disk '
                        'in order?')


def main(targets, arguments=None):
    """Run convert_weights.py. targets: names of TARGETS. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog='convert_weights.py',
        description='Converts the weights of any known format, and checks what it has written.')
    parser.add_argument('source', help='file, Hugging Face folder, or name of released weights')
    parser.add_argument('-o', '--output', help='.pdparams or .safetensors')
    parser.add_argument('-to', '--to', choices=targets, default='paddle',
                        help='whose names and layout (default: paddle, those of PaddleViT)')
    parser.add_argument('-list', '--list', action='store_true',
                        help='print every tensor; write nothing')
    parser.add_argument('-dry_run', '--dry_run', '--dry-run', action='store_true',
                        help='convert and check everything, but write nothing')
    parser.add_argument('-no_ema', '--no_ema', action='store_true',
                        help='take the raw weights of a training checkpoint, not the averaged')
    parser.add_argument('-overwrite', '--overwrite', action='store_true')
    options = parser.parse_args(arguments)
    try:
        _run(options)
    except (UserError, RunError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    return 0


def _run(options):
    if not options.output and not options.list:
        raise UserError('Say where to write with -o FILE, or use -list.')
    if options.list or options.dry_run:
        checkpoint, arrays = read_arrays(options.source, options.to, not options.no_ema)
        if options.list:
            for name, array in arrays.items():
                print(f'{name}  {list(array.shape)}')
        if options.output:
            check_output(options.output, options.to, options.overwrite)
            print(f'Would write {options.output}.')
        print(_summarize(checkpoint, arrays))
        return
    arrays = convert(options.source, options.output, options.to, not options.no_ema,
                     options.overwrite)
    print(_summarize(read_checkpoint(options.output), arrays))
    print(f'Wrote {options.output} and compared it with the source bit by bit.')


def _summarize(checkpoint, arrays):
    count = sum(array.size for array in arrays.values())
    numerics = ', '.join(f'{name} {value}' for name, value in checkpoint.numerics.items())
    return f'{checkpoint.format}: {len(arrays)} tensors, {count:,} numbers; {numerics}.'
