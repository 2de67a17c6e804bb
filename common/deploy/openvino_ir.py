"""What an OpenVINO model may hold, checked before OpenVINO sees its files.

Its form, the intermediate representation, is an .xml file of layers beside a .bin file of
numbers. A model passes if all its layers are operators of OpenVINO's own sets that compute, and
its numbers lie within the .bin file.
"""

import math
import os
import re
from xml.etree import ElementTree

from common.deploy.program import MAX_ELEMENTS, MAX_PROGRAM, split_words
from common.errors import UserError
from common.files import open_regular

OPERATORS = split_words("""
    Abs Add AvgPool Broadcast Ceiling Clamp Concat Const Convert Convolution Cos CumSum Divide Erf
    Exp FakeQuantize Floor FloorMod Gather Gelu GroupConvolution HardSigmoid HSwish Interpolate Log
    LogSoftmax MatMul MaxPool Maximum Minimum Mod Multiply MVN Negative NonZero NormalizeL2 Pad
    Parameter Power PReLU Range ReduceL2 ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReLU
    Relu Reshape Result ROIAlign ScaledDotProductAttention ScatterNDUpdate Select ShapeOf Sigmoid
    Sin Slice SoftMax Softmax SoftPlus Split Sqrt SquaredDifference Squeeze StridedSlice Subtract
    Swish Tanh Tile Transpose Unsqueeze VariadicSplit""")
SETS = re.compile(r'opset\d{1,2}')
MAX_LAYERS = 100_000
BITS = {'f64': 64, 'f32': 32, 'f16': 16, 'bf16': 16, 'i64': 64, 'i32': 32, 'i16': 16, 'i8': 8,
        'u64': 64, 'u32': 32, 'u16': 16, 'u8': 8, 'boolean': 8}


class _Refused(Exception):
    """The model is damaged, or holds what no exported model needs."""


def check_openvino(path: str) -> None:
    """Raise UserError unless the model in an .xml file, and the .bin beside it, only computes."""
    try:
        with open_regular(path) as file:
            if os.fstat(file.fileno()).st_size > MAX_PROGRAM:
                raise _Refused(f'it has more than {MAX_PROGRAM:,} bytes')
            content = file.read(MAX_PROGRAM)
        with open_regular(f'{os.path.splitext(path)[0]}.bin') as file:
            size = os.fstat(file.fileno()).st_size
        if b'<!' in content:            # entities could name files, or grow without end
            raise _Refused('it declares a document type')
        _check_network(ElementTree.fromstring(content), size)
    except (_Refused, ElementTree.ParseError, ValueError, RecursionError) as error:
        raise _explain(path, error) from None
    except OSError as error:
        raise _explain(path, error.strerror or error) from None


def _check_network(root, size):
    if root.tag != 'net' or {child.tag for child in root} - {'layers', 'edges', 'rt_info'}:
        raise _Refused('it has parts that no exported model has')
    layers = root.findall('layers/layer')
    if not 0 < len(layers) <= MAX_LAYERS:
        raise _Refused(f'it has {len(layers):,} layers')
    for layer in layers:
        kind, origin = layer.get('type', ''), layer.get('version', '')
        if kind not in OPERATORS or not SETS.fullmatch(origin):
            raise _Refused(f'the layer {kind[:60]!r} of {origin[:60]!r} is not one of those that '
                           'compute')
        if layer.find('body') is not None:
            raise _Refused('it has nested models')
        if kind == 'Const':
            _check_constant(layer.find('data'), size)


def _check_constant(data, size):
    """Check that a constant lies inside the file and is as large as its shape says."""
    values = {} if data is None else data.attrib
    start, length = int(values.get('offset', -1)), int(values.get('size', -1))
    if not 0 <= start <= start + length <= size:
        raise _Refused('its numbers lie outside the .bin file')
    shape = [int(part) for part in values.get('shape', '').split(',') if part.strip()]
    bits = BITS.get(values.get('element_type', ''))
    if bits is None or len(shape) > 16 or min(shape, default=0) < 0 \
            or math.prod(shape) > MAX_ELEMENTS or math.prod(shape) * bits // 8 != length:
        raise _Refused('a constant has no proper type or shape')


def _explain(path, reason):
    return UserError(f'{path} cannot be used: {reason}. If it is your own, export the model again '
                     'with export_model.py.')
