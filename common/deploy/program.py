"""What an exported model may hold, checked before an engine sees its files.

The files of a model are programs: Paddle has operators that write files, call Python and load
libraries. Here a program passes only if it is one block of operators that compute, named in
OPERATORS, on tensors of reasonable size, and if its parameters fill the file of parameters.
The readers here understand the files' structure and nothing else: a JSON tree (Paddle 3) and
protobuf's wire format (Paddle 2's ProgramDesc, ONNX's ModelProto), whose field numbers below are
those of the projects' .proto files.
"""

import hashlib
import itertools
import json
import math
import mmap
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

from common.errors import UserError
from common.files import open_regular

RECORD_FILE = 'files.json'          # SHA-256 of the files beside it
MAX_PROGRAM = 16 << 20              # bytes; ViT-H/14 has 2 MB
MAX_FIELDS = 1 << 20                # of a protobuf file; they take 3 s
MAX_ELEMENTS = 1 << 31              # of a tensor, a batch of one


def split_words(text: str) -> frozenset[str]:
    """Return the words of a text as a set."""
    return frozenset(text.split())


# Operators without effects outside their tensors, by the name that Paddle 3 gives them (also
# as `pd_op.name` in a .json of dialect 1), Paddle 2, and ONNX.
COMPUTE = split_words("""
    abs add argmax assign batch_norm bmm cast clip concat conv2d cos cumsum data
    depthwise_conv2d divide dropout einsum elementwise_pow erf exp expand fetch
    flatten flip full full_int_array full_like full_with_tensor gather gelu group_norm
    hardsigmoid hardswish index_select layer_norm leaky_relu log logsumexp matmul max maximum
    mean min minimum multiply pad pool2d pow prelu reciprocal relu relu6 remainder reshape roll
    round rsqrt scale shape shape64 sigmoid sign silu sin slice softmax softplus split
    split_with_num sqrt square squeeze stack strided_slice subtract sum swish tanh tile
    transpose tril triu unbind unfold unsqueeze unstack where""")
PIR_OPERATORS = frozenset({'p', '0.combine', '0.split', *(f'1.{name}' for name in COMPUTE)})
PIR_TAGS = PIR_OPERATORS | {'1.a_dtype', '1.a_intarray', '1.a_place'} | split_words("""
    0.a_array 0.a_bool 0.a_f32 0.a_f64 0.a_i32 0.a_i64 0.a_str 0.t_bf16 0.t_bool 0.t_dtensor
    0.t_f16 0.t_f32 0.t_f64 0.t_i32 0.t_i64 0.t_ui8 0.t_vec""")
DESC_OPERATORS = split_words("""
    abs arg_max assign batch_norm bmm cast clip concat conv2d cos cumsum depthwise_conv2d
    dropout einsum elementwise_add elementwise_div elementwise_max elementwise_min
    elementwise_mod elementwise_mul elementwise_pow elementwise_sub erf exp expand_v2 feed fetch
    fill_any_like fill_constant flatten_contiguous_range flip gather gelu group_norm
    hard_sigmoid hard_swish index_select layer_norm leaky_relu log logsumexp
    matmul_v2 pad3d pool2d pow prelu reciprocal reduce_max reduce_mean reduce_min reduce_sum
    relu relu6 reshape2 roll round rsqrt scale shape sigmoid sign silu sin slice softmax
    softplus split sqrt square squeeze2 stack strided_slice swish tanh tile transpose2 tril_triu
    unbind unfold unsqueeze2 unstack where""")
ONNX_OPERATORS = split_words("""
    Abs Add And ArgMax AveragePool BatchNormalization Cast Ceil Clip Concat Constant
    ConstantOfShape Conv Cos CumSum DequantizeLinear Div Dropout Equal Erf Exp Expand Flatten Floor
    Gather Gemm GlobalAveragePool Greater HardSigmoid HardSwish Identity InstanceNormalization
    LayerNormalization LeakyRelu Less Log MatMul Max MaxPool Min Mod Mul Neg Not Or PRelu Pad Pow
    QuantizeLinear Range Reciprocal ReduceL2 ReduceMax ReduceMean ReduceMin ReduceSum Relu Reshape
    Round Shape Sigmoid Sign Sin Slice Softmax Softplus Split Sqrt Squeeze Sub Sum Tanh Tile
    Transpose Trilu Unsqueeze Where""")

# Types of numbers: Paddle 3's name, and {Paddle 2's number: bytes}.
PIR_TYPES = {'0.t_bool': 0, '0.t_i32': 2, '0.t_i64': 3, '0.t_f16': 4, '0.t_f32': 5, '0.t_f64': 6,
             '0.t_ui8': 20, '0.t_bf16': 22}
ITEM_SIZES = {0: 1, 2: 4, 3: 8, 4: 2, 5: 4, 6: 8, 20: 1, 22: 2}


class Parameter(NamedTuple):
    """What a program says of a tensor that the file of parameters holds."""

    name: str
    dtype: int          # a key of ITEM_SIZES
    shape: tuple[int, ...]


class _Refused(Exception):
    """The file is damaged, or holds what no exported model needs."""


def check_paddle(program: str, parameters: str) -> None:
    """Raise UserError unless a Paddle program computes only, and its parameters are there."""
    try:
        with open_regular(program) as file:
            content = _read(file, MAX_PROGRAM)
        read = list_desc_parameters if program.endswith('.pdmodel') else list_pir_parameters
        wanted = read(content)
    except _Refused as error:
        raise _explain(program, error) from None
    except OSError as error:
        raise _explain(program, error.strerror or error) from None
    try:
        _check_parameters(parameters, wanted)
    except _Refused as error:
        raise _explain(parameters, error) from None
    except OSError as error:
        raise _explain(parameters, error.strerror or error) from None


def check_onnx(path: str) -> None:
    """Raise UserError unless an ONNX model computes only, with all numbers in its one file."""
    try:
        with open_regular(path) as file:
            content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            _walk(content, ONNX_MODEL)
    except (_Refused, ValueError) as error:         # ValueError: an empty file
        raise _explain(path, error) from None
    except OSError as error:
        raise _explain(path, error.strerror or error) from None


class OnnxNode(NamedTuple):
    """An operation of an ONNX model. inputs, output: names of tensors, weights among them."""

    operator: str
    inputs: tuple[str, ...]
    output: str


def list_onnx_nodes(path: str) -> list[OnnxNode]:
    """Return the operations of an ONNX model of our own, in order of computation."""
    with open_regular(path) as file:
        content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        graph, = _walk(content, ONNX_MODEL)[7]
    return [OnnxNode(_text(node, 4), tuple(bytes(name).decode() for name in node.get(1, [])),
                     bytes(node[2][0]).decode())
            for node in graph.get(1, [])]


def write_record(folder: str) -> None:
    """Write files.json: the SHA-256 of every file of the folder."""
    names = sorted(name for name in os.listdir(folder) if name != RECORD_FILE)
    hashes = {name: _hash(os.path.join(folder, name)) for name in names}
    with open(os.path.join(folder, RECORD_FILE), 'w', encoding='utf-8') as file:
        json.dump({'sha256': hashes}, file, indent=1)
        file.write('\n')


def check_record(folder: str, paths: list[str]) -> bool:
    """Return False where the folder has no record. Raises UserError for files that changed.

    paths: of the files that will be used. The hashes find damage and mixed-up files, not a
    forger, who would write the record too.
    """
    path = os.path.join(folder, RECORD_FILE)
    try:
        with open_regular(path) as file:
            hashes = json.loads(_read(file, 1 << 20))['sha256']
        if not isinstance(hashes, dict):
            raise _Refused('it holds no hashes')
    except FileNotFoundError:
        return False
    except OSError as error:
        raise _explain(path, error.strerror or error) from None
    except (_Refused, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _explain(path, f'{type(error).__name__}: {str(error)[:100]}') from None
    for used in paths:
        if hashes.get(os.path.basename(used)) != _hash_or_refuse(used):
            raise _explain(used, f'it is not the file that {RECORD_FILE} records')
    return True


def _hash_or_refuse(path):
    try:
        return _hash(path)
    except OSError as error:
        raise _explain(path, error.strerror or error) from None


def list_pir_parameters(content: bytes) -> list[Parameter]:
    """Return the parameters of a Paddle 3 program. Raises _Refused if it does more than compute."""
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _Refused(f'it is not JSON ({str(error)[:100]})') from None
    try:
        block = _only(_only(tree['program']['regions'])['blocks'])
        if set(tree) != {'base_code', 'program'} or set(tree['program']) != {'regions'} \
                or tree['base_code']['magic'] != 'pir' or set(block) != {'#', 'args', 'ops'}:
            raise _Refused('it has parts that no exported model has')
        for operator in block['ops']:
            if operator['#'] not in PIR_OPERATORS:
                raise _Refused(f'the operator {str(operator["#"])[:60]!r} is not one of those that '
                               'compute')
            if not set(operator) <= {'#', 'A', 'DA', 'I', 'O', 'OA', 'QA'}:
                raise _Refused('an operator has parts that no exported model has')
            _check_pir_tree([value for key, value in operator.items() if key != '#'])
        return [_read_pir_parameter(operator) for operator in block['ops']
                if operator['#'] == 'p']
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        raise _Refused(f'it is no program ({type(error).__name__}: {str(error)[:100]})') from None


def _only(items):
    if not isinstance(items, list) or len(items) != 1:
        raise _Refused('it has nested blocks')
    return items[0]


def _check_pir_tree(tree):
    """Check the tags and sizes of everything in an operator, without recursion."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, list):
            waiting += node
        elif isinstance(node, dict):
            if not set(node) <= {'#', '%', 'AT', 'D', 'N', 'TT'}:
                raise _Refused('an operator has attributes that no exported model has')
            if node.get('#', '0.a_str') not in PIR_TAGS:
                raise _Refused(f'unknown type {str(node["#"])[:60]!r}')
            if node.get('#') == '0.t_dtensor':
                _check_shape(node['D'][1])
            if node.get('#') == '1.a_intarray':
                _check_shape(node['D'])
            waiting += node.values()


def _check_shape(shape):
    if len(shape) > 16 or any(type(size) is not int or size < -1 for size in shape) \
            or math.prod(max(size, 1) for size in shape) > MAX_ELEMENTS:
        raise _Refused(f'a tensor has the shape {str(shape)[:60]}')


def _read_pir_parameter(operator):
    kind, shape = operator['O']['TT']['D'][:2]
    return _make_parameter(operator['A'][-1], PIR_TYPES.get(kind['#']), shape)


def _make_parameter(name, dtype, shape):
    if not isinstance(name, str) or dtype not in ITEM_SIZES or min(shape, default=1) < 0:
        raise _Refused(f'the parameter {str(name)[:60]!r} has no proper type or shape')
    return Parameter(name, dtype, tuple(shape))


# The wire format: {field: what it holds}. Fields that are missing here are refused. NUMBER: a
# varint, or several packed; BYTES: text, data and fixed-size numbers, which mean nothing here;
# a dict: a message.
NUMBER, BYTES = 'number', 'bytes'


class Message(NamedTuple):
    """fields: {number: NUMBER, BYTES or Message}. check: called with {number: [values]}."""

    fields: dict[int, Any]
    check: Any = None


def _walk(data, message, counter=None):
    """Return {field: [values]} of a message, checked with all that it holds. Raises _Refused.

    counter: of the fields of the file.
    """
    found, counter = {}, counter or itertools.count()
    for number, wire, value in read_fields(data):
        if next(counter) > MAX_FIELDS:
            raise _Refused('it has too many fields')
        kind = message.fields.get(number)
        if kind is None:
            raise _Refused(f'field {number} is none that an exported model has')
        if isinstance(kind, Message):
            if wire != 2:
                raise _Refused('a message is not one')
            value = _walk(value, kind, counter)
        elif kind is NUMBER and wire == 2:
            value = list(_read_packed(value, counter))
        elif (kind is NUMBER) != (wire == 0):
            raise _Refused('a field is of another type')
        found.setdefault(number, []).extend(value if kind is NUMBER and wire == 2 else [value])
    if message.check is not None:
        message.check(found)
    return found


def read_fields(data: memoryview) -> Iterator[tuple[int, int, Any]]:
    """Yield (field, wire type, value) of a protobuf message. Raises _Refused where it is damaged.

    value: int of a varint, else a memoryview. Groups, which proto3 has not, are refused.
    """
    place = 0
    while place < len(data):
        key, place = _read_varint(data, place)
        number, wire = key >> 3, key & 7
        if not 0 < number < 1 << 29:
            raise _Refused('damaged')
        if wire == 0:
            value, place = _read_varint(data, place)
            yield number, wire, value
            continue
        if wire == 2:
            size, place = _read_varint(data, place)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise _Refused('damaged')
        if size > len(data) - place:
            raise _Refused('damaged or cut short')
        yield number, wire, data[place:place + size]
        place += size


def _read_varint(data, place):
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(data):
            raise _Refused('damaged or cut short')
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            if value >= 1 << 64:
                break
            return value, place
    raise _Refused('damaged')


def _read_packed(data, counter):
    place = 0
    while place < len(data):
        if next(counter) > MAX_FIELDS:
            raise _Refused('it has too many fields')
        value, place = _read_varint(data, place)
        yield value


def _text(found, number):
    """Return the only value of a field as text, '' if it is missing."""
    values = found.get(number, [])
    if len(values) > 1:
        raise _Refused('a name stands there twice')
    return bytes(values[0]).decode('utf-8', 'replace') if values else ''


def _signed(values):
    return [value - (1 << 64) if value >> 63 else value for value in values]


def _check_attribute(found):
    # Types 8, 10, 13 and 14 name blocks and variables.
    if not set(found.get(2, [])) <= {0, 1, 2, 3, 4, 5, 6, 7, 9, 11, 12, 15}:
        raise _Refused('an attribute is a block')


def _check_operator(found):
    if (name := _text(found, 3)) not in DESC_OPERATORS:
        raise _Refused(f'the operator {name[:60]!r} is not one of those that compute')


def _check_block(found):
    if found.get(1, [0]) != [0]:
        raise _Refused('it has nested blocks')


def _check_program(found):
    if len(found.get(1, [])) != 1:
        raise _Refused('it has nested blocks')


def _check_tensor_desc(found):
    _check_shape(_signed(found.get(2, [])))


def _check_variable_type(found):
    if not set(found.get(1, [])) <= {7, 9, 10}:         # tensors, what is fed and what is fetched
        raise _Refused('a variable is no tensor')


TENSOR_DESC = Message({1: NUMBER, 2: NUMBER}, _check_tensor_desc)
VARIABLE = Message({1: BYTES, 2: Message(
    {1: NUMBER, 3: Message({1: TENSOR_DESC, 2: NUMBER})}, _check_variable_type),
    3: NUMBER, 4: NUMBER, 5: NUMBER, 6: NUMBER})
ARGUMENT = Message({1: BYTES, 2: BYTES})
SCALAR = Message({1: NUMBER, 2: NUMBER, 3: NUMBER, 4: BYTES})
ATTRIBUTE = Message({
    1: BYTES, 2: NUMBER, 3: NUMBER, 4: BYTES, 5: BYTES, 6: NUMBER, 7: BYTES, 8: BYTES, 10: NUMBER,
    11: NUMBER, 13: NUMBER, 15: NUMBER, 16: BYTES, 19: BYTES, 20: SCALAR, 21: SCALAR},
    _check_attribute)
OPERATOR = Message({1: ARGUMENT, 2: ARGUMENT, 3: BYTES, 4: ATTRIBUTE}, _check_operator)
VERSIONS = Message({1: Message({1: BYTES, 2: Message({1: NUMBER})})})
PROGRAM = Message({1: Message({1: NUMBER, 2: NUMBER, 3: VARIABLE, 4: OPERATOR, 5: NUMBER},
                              _check_block), 4: Message({1: NUMBER}), 5: VERSIONS}, _check_program)


def list_desc_parameters(content: bytes) -> list[Parameter]:
    """Return the parameters of a Paddle 2 program. Raises _Refused if it does more than compute."""
    block, = _walk(memoryview(content), PROGRAM)[1]
    parameters = []
    for variable in block.get(3, []):
        kind = variable.get(2, [{}])[0]
        if variable.get(3, [0])[-1] and kind.get(1) == [7]:
            desc = kind.get(3, [{}])[0].get(1, [{}])[0]
            parameters.append(_make_parameter(
                _text(variable, 1), desc.get(1, [None])[0], _signed(desc.get(2, []))))
    return parameters


def _check_onnx_domain(found):
    if _text(found, 1) not in ('', 'ai.onnx'):
        raise _Refused('it needs operators of another domain')


def _check_onnx_node(found):
    if _text(found, 7) not in ('', 'ai.onnx'):
        raise _Refused('it has operators of another domain')
    if (name := _text(found, 4)) not in ONNX_OPERATORS:
        raise _Refused(f'the operator {name[:60]!r} is not one of those that compute')


def _check_onnx_tensor(found):
    _check_shape(_signed(found.get(1, [])))
    if set(found.get(14, [0])) != {0}:
        raise _Refused('its numbers are in another file')


def _check_onnx_model(found):
    if len(found.get(7, [])) != 1:
        raise _Refused('it has no graph, or several')


ONNX_TENSOR = Message({
    1: NUMBER, 2: NUMBER, 4: BYTES, 5: NUMBER, 8: BYTES, 9: BYTES, 10: BYTES, 12: BYTES,
    14: NUMBER}, _check_onnx_tensor)
ONNX_VALUE = Message({1: BYTES, 2: Message({1: Message({1: NUMBER, 2: Message({
    1: Message({1: NUMBER, 2: BYTES, 3: BYTES})})})}), 3: BYTES})
ONNX_NODE = Message({1: BYTES, 2: BYTES, 3: BYTES, 4: BYTES, 6: BYTES, 7: BYTES, 5: Message({
    1: BYTES, 2: BYTES, 3: NUMBER, 4: BYTES, 5: ONNX_TENSOR, 7: BYTES, 8: NUMBER, 9: BYTES,
    13: BYTES, 20: NUMBER})}, _check_onnx_node)
ONNX_GRAPH = Message({1: ONNX_NODE, 2: BYTES, 5: ONNX_TENSOR, 10: BYTES, 11: ONNX_VALUE,
                      12: ONNX_VALUE, 13: ONNX_VALUE})
ONNX_MODEL = Message({
    1: NUMBER, 2: BYTES, 3: BYTES, 4: BYTES, 5: NUMBER, 6: BYTES, 7: ONNX_GRAPH,
    8: Message({1: BYTES, 2: NUMBER}, _check_onnx_domain)}, _check_onnx_model)


def _check_parameters(path, wanted):
    """Check that a .pdiparams file holds just these tensors, by name, and nothing else.

    Each is: 4 bytes version, 8 bytes number of levels, 4 bytes version, 4 bytes length of a
    TensorDesc, the TensorDesc, the numbers.
    """
    with open_regular(path, 1 << 16) as file:
        size = os.fstat(file.fileno()).st_size
        for parameter in sorted(wanted):
            head = file.read(20)
            length = int.from_bytes(head[16:], 'little')
            if len(head) < 20 or head[:16] != bytes(16) or length > 1000:
                raise _Refused('damaged or cut short')
            desc = _walk(memoryview(file.read(length)), TENSOR_DESC)
            found = (desc.get(1, [None])[0], tuple(_signed(desc.get(2, []))))
            if found != parameter[1:]:
                raise _Refused(f'{parameter.name[:60]} has another type or shape than in the '
                               'program')
            file.seek(ITEM_SIZES[parameter.dtype] * math.prod(parameter.shape), os.SEEK_CUR)
            if file.tell() > size:
                raise _Refused('cut short')
        if file.tell() != size:
            raise _Refused('it holds more than the parameters of the program')


def _read(file, limit):
    size = os.fstat(file.fileno()).st_size
    if size > limit:
        raise _Refused(f'{size:,} bytes are too many (at most {limit:,})')
    content = bytearray()
    while chunk := file.read(limit + 1 - len(content)):
        content += chunk
    return bytes(content)


def _hash(path):
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _explain(path, reason):
    return UserError(f'{path} cannot be used: {reason}. If it is your own, export the model again '
                     'with export_model.py.')
