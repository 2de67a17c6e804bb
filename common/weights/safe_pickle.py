"""Reads the pickles inside checkpoints without running anything they ask for.

A pickle is a program for a small stack machine, and Python's own unpickler
lets it call any function. The machine here knows only the instructions that
files of arrays use. A name such as "numpy.ndarray" is looked up in a table of
the functions below; it is never imported. Every length is compared with what
is left of the file before memory is taken, and dictionary keys are text or
numbers, so the time and memory that a hostile file costs follow its size.
"""

import collections
import io
import os
import struct
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import numpy as np

from common.errors import UserError
from common.files import open_regular

MAX_INSTRUCTIONS = 2_000_000    # CIFAR-100's training file has 200,000; a checkpoint fewer
MAX_DEPTH = 200                 # open brackets; real files stay below 10

DTYPES = {'f2', 'f4', 'f8', 'i1', 'i2', 'i4', 'i8', 'u1', 'u2', 'u4', 'u8', 'b1'}

# Entries that paddle.save adds to a dictionary.
NAME_TABLE = 'StructuredToParameterName@@'
SLICE_TABLE = 'UnpackBigParamInfor@@'

Functions = Mapping[tuple[str, str], Callable]      # {(module, name): what REDUCE may call}
Contents = tuple[dict[str, Any], dict[str, Any]]    # of a file: (tree of ndarrays, metadata)


class PickleError(Exception):
    """The pickle is damaged, or asks for something that no checkpoint needs."""


def load(path: str | os.PathLike, keep_names: bool = False) -> Any:
    """Return what paddle.save or pickle.dump wrote: dict, list, tuple, text, numbers, ndarray.

    Tensors become ndarrays, or (parameter name, ndarray) pairs if keep_names.
    Python 2's byte strings (CIFAR) come as latin-1 text. Arrays may be read-only.
    Raises UserError naming the path and the reason.
    """
    path = os.fspath(path)
    functions = NAMED_FUNCTIONS if keep_names else PADDLE_FUNCTIONS
    try:
        with open_regular(path, io.DEFAULT_BUFFER_SIZE) as file:
            tree = Reader(file, os.fstat(file.fileno()).st_size, functions).read()
        tree = join_large_arrays(tree)
        return tree if keep_names else _drop_name_tables(tree)
    except OSError as error:
        raise UserError(f'Cannot read {path}: {error.strerror}.') from None
    except PickleError as error:
        raise UserError(f'{path}: {error}') from None


class Reader:
    """Reads one pickle from a binary file object.

    size: bytes from the file's current position to the end. functions:
    {(module, name): function} that REDUCE may call. resolve: called with the
    (module, name) of anything else; the default refuses. load_persistent:
    called with a persistent id (torch keeps its storages that way).
    """

    def __init__(self, file: BinaryIO, size: int, functions: Functions,
                 resolve: Callable[[str, str], Any] | None = None,
                 load_persistent: Callable[[Any], Any] | None = None) -> None:
        self.file = file
        self.left = size
        self.budget = size              # items and bytes that instructions may copy
        self.functions = functions
        self.resolve = resolve or _refuse
        self.load_persistent = load_persistent
        self.stack = []
        self.outer = []                 # stacks below the open marks
        self.memo = {}

    def read(self) -> Any:
        """Return the pickled object. Raises PickleError."""
        try:
            for _ in range(MAX_INSTRUCTIONS):
                code = self._take(1)
                if code == b'.':
                    return self.stack.pop()
                instruction = INSTRUCTIONS.get(code)
                if instruction is None:
                    raise PickleError(
                        f'not a checkpoint: unexpected pickle instruction {code!r}.')
                instruction(self)
        except (IndexError, KeyError, TypeError, ValueError, AttributeError, OverflowError,
                RecursionError, struct.error) as error:
            raise PickleError(
                f'damaged, or not a checkpoint ({type(error).__name__}: {error}).') from None
        raise PickleError(f'more than {MAX_INSTRUCTIONS:,} pickle instructions.')

    def _take(self, count):
        if count > self.left:
            raise PickleError(
                f'damaged or cut short: {count:,} bytes announced, {self.left:,} left.')
        taken = self.file.read(count)
        if len(taken) != count:
            raise PickleError('damaged or cut short: the file ends too early.')
        self.left -= count
        return taken

    def _number(self, form):
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _line(self):
        line = self.file.readline(min(self.left, 300))
        if not line.endswith(b'\n'):
            raise PickleError('damaged: a name has no end.')
        self.left -= len(line)
        return line[:-1].decode('utf-8')

    def charge(self, amount: int) -> None:
        self.budget -= amount
        if self.budget < 0:
            raise PickleError('holds the same data again and again.')

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def push_mark(self) -> None:
        if len(self.outer) >= MAX_DEPTH:
            raise PickleError(f'nested more than {MAX_DEPTH} levels deep.')
        self.outer.append(self.stack)
        self.stack = []

    def pop_to_mark(self) -> list:
        items, self.stack = self.stack, self.outer.pop()
        return items

    def push_text(self, form: str, encoding: str) -> None:
        # Python pickles file names that are not UTF-8, as it holds them, by "surrogatepass".
        errors = 'surrogatepass' if encoding == 'utf-8' else 'strict'
        self.push(self._take(self._number(form)).decode(encoding, errors))

    def push_tuple(self, count: int) -> None:
        items = tuple(self.stack[-count:])
        if len(items) != count:
            raise PickleError('damaged: a tuple lacks items.')
        self.stack[-count:] = [items]

    def set_items(self, items: list) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            if isinstance(target, Inert):
                return
            raise PickleError('damaged: items are put where no dictionary is.')
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_check_key(key)] = value

    def append(self, items: list) -> None:
        target = self.stack[-1]
        if isinstance(target, Inert):
            return
        if not isinstance(target, list):
            raise PickleError('damaged: items are put where no list is.')
        target.extend(items)

    def find_function(self, module: Any, name: Any) -> Any:
        if not isinstance(module, str) or not isinstance(name, str):
            raise PickleError('damaged: a function without a name.')
        function = self.functions.get((module, name))
        return self.resolve(module, name) if function is None else Function(function)

    def call(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if isinstance(function, Inert):
            self.push(Inert(function.name))
            return
        if not isinstance(function, Function) or not isinstance(arguments, tuple):
            raise PickleError('damaged: a call of something that is no function.')
        self.push(function.run(self, *arguments))

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) is np.ndarray:
            _fill_array(self, target, state)
        elif isinstance(target, np.dtype):
            _check_dtype_state(*state)
        elif not isinstance(target, (dict, Inert)):     # attributes of a dict: not needed
            raise PickleError(f'sets the state of a {type(target).__name__}.')

    def push_persistent(self) -> None:
        if self.load_persistent is None:
            raise PickleError('refers to data outside the file.')
        self.push(self.load_persistent(self.stack.pop()))


class Checker(Reader):
    """Reads as Reader does, but drops the numbers of arrays: memory for one at a time will do.

    In their place stand arrays of the same shape and type that take no memory.
    """

    def build(self) -> None:
        if type(self.stack[-2]) is not np.ndarray:
            super().build()
            return
        _, shape, dtype, _, data = self.stack.pop()
        check_shape(shape, dtype, len(data))
        self.stack[-1] = np.broadcast_to(np.zeros((), dtype), shape)


class Function:
    """A function of this module that the pickle may call."""

    def __init__(self, run: Callable) -> None:
        self.run = run


class Inert:
    """Stands for an object whose class is unknown; keeps only the name."""

    def __init__(self, name: str) -> None:
        self.name = name


def _refuse(module, name):
    raise PickleError(
        f'asks for {module}.{name}, which no checkpoint needs; nothing was run. '
        'Do not trust this file.')


def _check_key(key):
    # Hashing a deeply nested tuple overflows the C stack.
    if not isinstance(key, (str, int, float, bytes, type(None))):
        raise PickleError(f'a dictionary key is a {type(key).__name__}.')
    return key


def _make_dtype(reader, code, *flags):
    if code == '?':
        code = 'b1'
    if code not in DTYPES:
        raise PickleError(f'holds an array of {code!r}; checkpoints hold numbers.')
    return np.dtype(code)


def _check_dtype_state(version, order, subtype=None, names=None, fields=None, *sizes):
    if order == '>':
        raise PickleError('holds big-endian arrays, which are not supported.')
    if subtype is not None or names is not None or fields is not None:
        raise PickleError('holds structured arrays, which no checkpoint needs.')


def _make_array(reader, kind, shape=None, code=None):
    return np.ndarray(0, np.uint8)          # BUILD fills it


def _fill_array(reader, array, state):
    _, shape, dtype, is_fortran, data = state
    check_shape(shape, dtype, len(data))
    if isinstance(data, str):
        data = _to_bytes(reader, data)
    array.__setstate__((1, shape, dtype, bool(is_fortran), data))


def check_shape(shape: Any, dtype: Any, num_bytes: int) -> None:
    """Raise PickleError unless an array of this shape and dtype fills num_bytes exactly."""
    if not isinstance(dtype, np.dtype) or dtype.hasobject or dtype.itemsize == 0:
        raise PickleError('an array without a number type.')
    if not isinstance(shape, tuple) or len(shape) > 8 or any(
            type(size) is not int or size < 0 for size in shape):
        raise PickleError(f'an array has the shape {str(shape)[:80]}.')
    expected = dtype.itemsize
    for size in shape:
        expected *= size
    if expected != num_bytes:
        raise PickleError(
            f'an array of shape {list(shape)} and {dtype} needs {expected:,} bytes, '
            f'{num_bytes:,} are stored.')


def _array_from_buffer(reader, data, dtype, shape, order):
    if not isinstance(data, (bytes, bytearray)):
        raise PickleError('an array without data.')
    check_shape(shape, dtype, len(data))
    return np.frombuffer(data, dtype).reshape(shape, order='F' if order == 'F' else 'C')


def _make_scalar(reader, dtype, data):
    if isinstance(data, str):
        data = _to_bytes(reader, data)
    check_shape((), dtype, len(data))
    return np.frombuffer(data, dtype)[0]


def _to_bytes(reader, text, encoding='latin1'):
    """`codecs.encode(text, "latin1")`: how protocols 2 and 3 store bytes."""
    if encoding not in ('latin1', 'latin-1'):
        raise PickleError(f'encodes bytes as {str(encoding)[:40]!r}.')
    reader.charge(len(text))
    return text.encode('latin1')


def _make_bytes(reader):
    return b''


def _make_dict(reader, items=()):
    if len(items) == 0:
        return collections.OrderedDict()
    reader.charge(len(items))              # Python 2 passes the items as a list of pairs
    return collections.OrderedDict((_check_key(key), value) for key, value in items)


def _pair(reader, pair=()):
    """`tuple((name, ndarray))`: how paddle.save stores a tensor."""
    if not isinstance(pair, tuple):
        raise PickleError('a tuple is made of something else.')
    return pair


def _tensor(reader, pair=()):
    pair = _pair(reader, pair)
    if len(pair) == 2 and isinstance(pair[0], str) and isinstance(pair[1], np.ndarray):
        return pair[1]
    return pair


def _dense_tensor(reader, expression, variables):
    """`eval("data", {"data": ndarray})`: a tensor of a static program. Nothing is evaluated."""
    if expression != 'data' or not isinstance(variables, dict):
        _refuse('builtins', 'eval')
    return variables['data']


def _in_modules(modules, name, function):
    return {(module, name): function for module in modules}


_BUILTINS = ('builtins', '__builtin__')
NUMPY_FUNCTIONS = {
    **_in_modules(('numpy.core.multiarray', 'numpy._core.multiarray'), '_reconstruct', _make_array),
    **_in_modules(('numpy.core.multiarray', 'numpy._core.multiarray'), 'scalar', _make_scalar),
    **_in_modules(('numpy.core.numeric', 'numpy._core.numeric'), '_frombuffer', _array_from_buffer),
    ('numpy', 'ndarray'): _make_array,
    ('numpy', 'dtype'): _make_dtype,
    ('_codecs', 'encode'): _to_bytes,
    **_in_modules(_BUILTINS, 'bytes', _make_bytes),
    ('collections', 'OrderedDict'): _make_dict,
}
PADDLE_FUNCTIONS = {
    **NUMPY_FUNCTIONS,
    **_in_modules(_BUILTINS, 'tuple', _tensor),
    **_in_modules(_BUILTINS, 'eval', _dense_tensor),
}
NAMED_FUNCTIONS = {**PADDLE_FUNCTIONS, **_in_modules(_BUILTINS, 'tuple', _pair)}


def _pop_names(reader):
    name, module = reader.stack.pop(), reader.stack.pop()
    return module, name


def _skip_protocol(reader):
    if reader._number('B') > 5:
        raise PickleError('not a checkpoint: an unknown pickle protocol.')


def _push_memo(index_form):
    return lambda reader: reader.push(reader.memo[reader._number(index_form)])


def _store_memo(index_form):
    def store(reader):
        reader.memo[reader._number(index_form)] = reader.stack[-1]
    return store


def _memoize(reader):
    reader.memo[len(reader.memo)] = reader.stack[-1]


def _make_inert(reader):                    # NEWOBJ: cls.__new__(cls, *arguments)
    reader.stack.pop()
    kind = reader.stack.pop()
    if not isinstance(kind, Inert):
        raise PickleError('makes an object of a class that no checkpoint needs.')
    reader.push(Inert(kind.name))


def _dict_from_mark(reader):
    items = reader.pop_to_mark()
    reader.push({})
    reader.set_items(items)


# The instructions by their byte, named as in pickletools.
INSTRUCTIONS = {
    b'\x80': _skip_protocol,                                            # PROTO
    b'\x95': lambda r: r._take(8),                                      # FRAME
    b'N': lambda r: r.push(None),                                       # NONE
    b'\x88': lambda r: r.push(True),                                    # NEWTRUE
    b'\x89': lambda r: r.push(False),                                   # NEWFALSE
    b'J': lambda r: r.push(r._number('<i')),                            # BININT
    b'K': lambda r: r.push(r._number('B')),                             # BININT1
    b'M': lambda r: r.push(r._number('<H')),                            # BININT2
    b'\x8a': lambda r: r.push(                                          # LONG1
        int.from_bytes(r._take(r._number('B')), 'little', signed=True)),
    b'G': lambda r: r.push(r._number('>d')),                            # BINFLOAT
    b'U': lambda r: r.push_text('B', 'latin1'),                         # SHORT_BINSTRING
    b'T': lambda r: r.push_text('<I', 'latin1'),                        # BINSTRING
    b'\x8c': lambda r: r.push_text('B', 'utf-8'),                       # SHORT_BINUNICODE
    b'X': lambda r: r.push_text('<I', 'utf-8'),                         # BINUNICODE
    b'\x8d': lambda r: r.push_text('<Q', 'utf-8'),                      # BINUNICODE8
    b'C': lambda r: r.push(r._take(r._number('B'))),                    # SHORT_BINBYTES
    b'B': lambda r: r.push(r._take(r._number('<I'))),                   # BINBYTES
    b'\x8e': lambda r: r.push(r._take(r._number('<Q'))),                # BINBYTES8
    b'\x96': lambda r: r.push(r._take(r._number('<Q'))),                # BYTEARRAY8
    b'(': lambda r: r.push_mark(),                                      # MARK
    b']': lambda r: r.push([]),                                         # EMPTY_LIST
    b'}': lambda r: r.push({}),                                         # EMPTY_DICT
    b')': lambda r: r.push(()),                                         # EMPTY_TUPLE
    b'l': lambda r: r.push(r.pop_to_mark()),                            # LIST
    b'd': _dict_from_mark,                                              # DICT
    b't': lambda r: r.push(tuple(r.pop_to_mark())),                     # TUPLE
    b'\x85': lambda r: r.push_tuple(1),                                 # TUPLE1
    b'\x86': lambda r: r.push_tuple(2),                                 # TUPLE2
    b'\x87': lambda r: r.push_tuple(3),                                 # TUPLE3
    b'a': lambda r: r.append([r.stack.pop()]),                          # APPEND
    b'e': lambda r: r.append(r.pop_to_mark()),                          # APPENDS
    b's': lambda r: r.set_items([r.stack.pop(-2), r.stack.pop()]),      # SETITEM
    b'u': lambda r: r.set_items(r.pop_to_mark()),                       # SETITEMS
    b'h': _push_memo('B'),                                              # BINGET
    b'j': _push_memo('<I'),                                             # LONG_BINGET
    b'q': _store_memo('B'),                                             # BINPUT
    b'r': _store_memo('<I'),                                            # LONG_BINPUT
    b'\x94': _memoize,                                                  # MEMOIZE
    b'c': lambda r: r.push(r.find_function(r._line(), r._line())),      # GLOBAL
    b'\x93': lambda r: r.push(r.find_function(*_pop_names(r))),         # STACK_GLOBAL
    b'R': lambda r: r.call(),                                           # REDUCE
    b'\x81': _make_inert,                                               # NEWOBJ
    b'b': lambda r: r.build(),                                          # BUILD
    b'Q': lambda r: r.push_persistent(),                                # BINPERSID
}


def join_large_arrays(tree: Any) -> Any:
    """Join the slices into which paddle.save cuts arrays above 1 GiB."""
    if isinstance(tree, dict):
        for branch in [tree, *(value for value in tree.values() if isinstance(value, dict))]:
            if SLICE_TABLE in branch:
                _join_slices(branch)
    return tree


def _drop_name_tables(tree):
    if isinstance(tree, dict):
        for branch in [tree, *(value for value in tree.values() if isinstance(value, dict))]:
            branch.pop(NAME_TABLE, None)
    return tree


def _join_slices(branch):
    table = branch.pop(SLICE_TABLE)
    try:
        for name, entry in table.items():
            shape = tuple(entry['OriginShape'])
            parts = [branch.pop(part) for part in entry['slices']]
            check_shape(shape, parts[0].dtype, sum(part.nbytes for part in parts))
            branch[name] = np.concatenate(parts).reshape(shape)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise PickleError(f'damaged: the slices of a large array do not fit ({error}).') from None
