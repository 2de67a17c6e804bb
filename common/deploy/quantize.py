"""int8 by post-training quantisation: NNCF for OpenVINO, ONNX Runtime's for ONNX.

Both libraries see pictures pass through the float model, take the ranges of what flows between
the layers, and write weights and activations as 8-bit integers (Jacob et al. 2018,
arXiv:1712.05877). They run in a process of their own, because they are large and what goes wrong
in native code ends it; nothing is sent anywhere (NNCF would report its use otherwise).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from common.deploy.program import list_onnx_nodes
from common.errors import RunError, UserError, suggest
from common.terminal import is_terminal

if TYPE_CHECKING:               # it imports Paddle, which the process of its own has no use for
    from common.data.preprocessing import Preprocessing

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# What each format needs beside Paddle: {format: [(module, package)]}.
PACKAGES = {'openvino': [('openvino', 'openvino'), ('nncf', 'nncf')],
            'onnx': [('onnxruntime', 'onnxruntime'), ('onnx', 'onnx'),
                     ('ml_dtypes', 'ml_dtypes')]}
PRODUCTS = ('MatMul', 'Gemm', 'Conv')
QUIET = {'NNCF_CI': '1', 'CI': 'true'}      # both libraries' switch against reporting


@dataclass(frozen=True)
class Job:
    """What the process is to do.

    task: "convert" (ONNX to OpenVINO, float32), or to int8: "openvino" or "onnx".
    source: a float32 ONNX model. target: the file to write. crops: .npy file, uint8 [N, S, S, 3].
    keep_float: what the products that stay float32 compute, by the names of the tensors.
    """

    task: str
    source: str
    target: str
    crops: str = ''
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    keep_float: tuple[str, ...] = ()


def convert_to_openvino(source: str, target: str) -> None:
    """Write a float32 OpenVINO model, target (.xml) and the .bin beside it, from an ONNX file."""
    _run_job(Job('convert', source, target))


def quantize(form: str, source: str, target: str, crops: np.ndarray, preprocessing: Preprocessing,
             weights: Collection[str], keep_float: Collection[str]) -> None:
    """Write the int8 model of a float32 ONNX file.

    form: "openvino" or "onnx". crops: uint8 [N, S, S, 3], pictures to take ranges from. weights:
    names of the layers' weights in the file; keep_float: those whose layers stay float32.
    Raises RunError with the library's words where it fails.
    """
    products = [node for node in list_onnx_nodes(source) if node.operator in PRODUCTS]
    # ONNX Runtime's int8 product of two activations, which attention has, is slower than float32.
    kept = [node.output for node in products if set(node.inputs) & set(keep_float)
            or form == 'onnx' and not set(node.inputs) & set(weights)]
    with tempfile.TemporaryDirectory() as scratch:
        path = os.path.join(scratch, 'crops.npy')
        np.save(path, crops)
        _run_job(Job(form, source, target, path, tuple(preprocessing.mean),
                     tuple(preprocessing.std), tuple(kept)))


def choose_weights(weights: dict[str, str], layers: list[str]) -> list[str]:
    """Return the weights that belong to layers: by a layer's own name or that of what holds it.

    weights: {name in the program: name in the model}. layers: such as "head", "blocks.3" or
    "blocks.3.mlp.fc1". Raises UserError for one that names nothing.
    """
    chosen = []
    for layer in layers:
        found = [name for name, key in weights.items() if f'{key}.'.startswith(f'{layer}.')]
        if not found:
            known = sorted({group_of(key) for key in weights.values()})
            raise UserError(f'-keep_float: the model has no layer {layer!r}.'
                            f'{suggest(layer, known)} Its parts are: {", ".join(known)}.')
        chosen += found
    return chosen


def group_of(key: str) -> str:
    """Return the part of a model that a layer belongs to: "encoder.layers.3", "head"."""
    return re.match(r'.*?\.\d+(?=\.)|[^.]*', key)[0]


def _run_job(job: Job) -> None:
    """Do a job in a process of its own. Raises RunError."""
    with tempfile.TemporaryDirectory() as scratch:
        problem = os.path.join(scratch, 'problem.txt')
        paths = os.pathsep.join(filter(None, [ROOT, os.environ.get('PYTHONPATH')]))
        ended = subprocess.run(
            [sys.executable, '-m', 'common.deploy.quantize', problem, json.dumps(asdict(job))],
            env={**os.environ, **QUIET, 'PYTHONPATH': paths}, cwd=scratch,
            stdout=subprocess.DEVNULL, stderr=None if sys.stderr.isatty() else subprocess.PIPE,
            text=True, errors='replace')
        words = _read_text(problem)
    if words is None:
        lines = (ended.stderr or '').strip().splitlines() or ['no message']
        words = f'exit code {ended.returncode}: {lines[-1][:300]}'
    if words:
        raise RunError(f'{LIBRARY[job.task]} could not convert the model ({words}).')


def _read_text(path):
    try:
        with open(path, encoding='utf-8') as file:
            return file.read()
    except OSError:
        return None


# What follows runs in the process of its own.

def _convert(job):
    import openvino
    model = openvino.convert_model(job.source)
    openvino.save_model(model, job.target, compress_to_fp16=False)


def _quantize_openvino(job):
    import logging

    import nncf
    import openvino
    nncf.set_log_level(logging.ERROR)
    model = openvino.convert_model(job.source)
    kept = [operation.get_friendly_name() for operation in model.get_ordered_ops()
            if operation.get_type_name() in ('MatMul', 'Convolution')
            and operation.get_output_tensor(0).get_names() & set(job.keep_float)]
    crops = np.load(job.crops)
    with tqdm(unit='picture', desc='Calibrating', dynamic_ncols=True,
              disable=not is_terminal(sys.stderr)) as bar:
        def prepare(crop):
            bar.update()
            return _normalize(crop, job)
        result = nncf.quantize(
            model, nncf.Dataset(crops, prepare), subset_size=len(crops),
            preset=nncf.QuantizationPreset.MIXED, model_type=nncf.ModelType.TRANSFORMER,
            ignored_scope=nncf.IgnoredScope(names=kept))
    openvino.save_model(result, job.target, compress_to_fp16=False)


def _quantize_onnx(job):
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    model = _name_weights(onnx.load(job.source))
    kept = [node.name for node in model.graph.node if set(node.output) & set(job.keep_float)]
    crops = np.load(job.crops)
    images = model.graph.input[0].name

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.rest = iter(tqdm(crops, unit='picture', desc='Calibrating', dynamic_ncols=True,
                                  disable=not is_terminal(sys.stderr)))

        def get_next(self):
            crop = next(self.rest, None)
            return None if crop is None else {images: _normalize(crop, job)}

    quantize_static(
        model, job.target, Reader(), op_types_to_quantize=list(PRODUCTS),
        nodes_to_exclude=kept, per_channel=True, activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8)
    result = onnx.load(job.target)
    del result.metadata_props[:]            # what the quantiser notes for itself
    onnx.save(result, job.target)


def _name_weights(model):
    """Make initializers of the Constant nodes: ONNX Runtime quantises weights only of those."""
    import onnx
    for node in [node for node in model.graph.node if node.op_type == 'Constant']:
        value = next((item.t for item in node.attribute if item.name == 'value'), None)
        if value is not None:
            tensor = onnx.TensorProto()
            tensor.CopyFrom(value)
            tensor.name = node.output[0]
            model.graph.initializer.append(tensor)
            model.graph.node.remove(node)
    return model


def _normalize(crop, job):
    """Return the input of one picture, float32 [1, 3, S, S]; as common.data.normalize does it."""
    values = (crop.astype('float32') / 255 - np.float32(job.mean)) / np.float32(job.std)
    return np.ascontiguousarray(values.transpose(2, 0, 1)[None], dtype=np.float32)


TASKS = {'convert': _convert, 'openvino': _quantize_openvino, 'onnx': _quantize_onnx}
LIBRARY = {'convert': 'OpenVINO', 'openvino': 'NNCF', 'onnx': 'ONNX Runtime'}


def main() -> None:
    """Do the job of the command line; write what went wrong, or nothing, into a file."""
    path, text = sys.argv[1:]
    job = Job(**json.loads(text))
    problem = ''
    try:
        TASKS[job.task](job)
    except Exception as error:              # of many kinds, and native code's among them
        lines = [line for line in str(error).splitlines() if line.strip()]
        problem = f'{type(error).__name__}: {lines[0][:300] if lines else "no message"}'
    with open(path, 'w', encoding='utf-8', errors='backslashreplace') as file:
        file.write(problem)


if __name__ == '__main__':
    main()
