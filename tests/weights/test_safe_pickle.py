"""The restricted reader of pickles: right on real files, harmless on hostile ones."""

import collections
import pickle
import struct

import numpy as np
import paddle
import pytest

from common.errors import UserError
from common.weights import safe_pickle
from tests.support.paths import FIXTURES

WEIGHTS = FIXTURES / 'weights'


def write(folder, data):
    path = folder / 'file.pdparams'
    path.write_bytes(data)
    return path


@pytest.mark.parametrize('protocol', [2, 3, 4])
def test_reads_what_paddle_saves(tmp_path, protocol):
    layer = paddle.nn.Linear(3, 4)
    saved = {
        'model': layer.state_dict(),
        'tensor': layer.weight,
        'optimizer': {'beta': np.float32(0.5), 'moment': np.ones((3, 2), 'int64', order='F')},
        'empty': np.zeros((0, 3)),
        'flags': np.array([True, False]),
        'epoch': 3,
        'plain': [1, 2.5, None, 'é', -5, 2 ** 40, (1, 2)],
    }
    path = tmp_path / 'a.pdparams'
    paddle.save(saved, str(path), protocol=protocol)
    tree = safe_pickle.load(path)
    assert isinstance(tree['model'], collections.OrderedDict)
    np.testing.assert_array_equal(tree['model']['weight'], layer.weight.numpy())
    np.testing.assert_array_equal(tree['tensor'], layer.weight.numpy())
    np.testing.assert_array_equal(tree['optimizer']['moment'], np.ones((3, 2)))
    assert tree['optimizer']['moment'].dtype == np.int64
    assert tree['optimizer']['beta'] == np.float32(0.5)
    assert tree['empty'].shape == (0, 3)
    assert tree['flags'].tolist() == [True, False]
    assert tree['epoch'] == 3
    assert tree['plain'] == saved['plain']
    name, value = safe_pickle.load(path, keep_names=True)['tensor']
    assert name == layer.weight.name and value.shape == (3, 4)


def test_bare_state_dict_has_no_name_table(tmp_path):
    layer = paddle.nn.Linear(3, 4)
    path = tmp_path / 'a.pdparams'
    paddle.save(layer.state_dict(), str(path))
    assert set(safe_pickle.load(path)) == {'weight', 'bias'}
    assert safe_pickle.NAME_TABLE in safe_pickle.load(path, keep_names=True)


def test_joins_the_slices_of_a_large_array(tmp_path):
    tree = {
        'w@@.0': np.arange(4.0), 'w@@.1': np.arange(4.0, 6.0),
        'UnpackBigParamInfor@@': {'w': {'OriginShape': (2, 3), 'slices': ['w@@.0', 'w@@.1']}},
    }
    loaded = safe_pickle.load(write(tmp_path, pickle.dumps(tree, 2)))
    assert list(loaded) == ['w']
    np.testing.assert_array_equal(loaded['w'], np.arange(6.0).reshape(2, 3))
    tree['UnpackBigParamInfor@@']['w']['OriginShape'] = (3, 3)
    with pytest.raises(UserError, match='needs 72 bytes, 48 are stored'):
        safe_pickle.load(write(tmp_path, pickle.dumps(tree, 2)))


@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
def test_reads_numpy_of_every_protocol(tmp_path, protocol):
    tree = {'a': np.arange(6, dtype='f4').reshape(2, 3), 'b': np.arange(6).reshape(2, 3).T}
    loaded = safe_pickle.load(write(tmp_path, pickle.dumps(tree, protocol)))
    for name, value in tree.items():
        np.testing.assert_array_equal(loaded[name], value)
        assert loaded[name].flags.aligned


def test_reads_python_2_byte_strings(tmp_path):
    """As in CIFAR's batches: str data under keys of bytes, numpy.core names."""
    raw = bytes(range(250, 256))
    data = (b'\x80\x02}q\x00(U\x04dataq\x01cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\n'
            b'ndarray\nq\x03K\x00\x85q\x04U\x01bq\x05\x87q\x06Rq\x07(K\x01K\x02K\x03\x86q\x08'
            b'cnumpy\ndtype\nq\tU\x02u1q\nK\x00K\x01\x87q\x0bRq\x0c(K\x03U\x01|q\rNNNJ\xff\xff\xff'
            b'\xffJ\xff\xff\xff\xffK\x00tq\x0eb\x89T\x06\x00\x00\x00' + raw + b'q\x0ftq\x10bU\x06'
            b'labelsq\x11]q\x12(K\x03K\x08eu.')
    assert pickle.loads(data, encoding='latin1')['labels'] == [3, 8]    # the test data is a pickle
    tree = safe_pickle.load(write(tmp_path, data))
    assert tree['data'].tolist() == [[250, 251, 252], [253, 254, 255]]
    assert tree['labels'] == [3, 8]


CALLABLES = [
    ('os', 'system'), ('posix', 'system'), ('nt', 'system'), ('subprocess', 'Popen'),
    ('subprocess', 'check_output'), ('builtins', 'eval'), ('builtins', 'exec'),
    ('builtins', 'compile'), ('builtins', '__import__'), ('builtins', 'open'),
    ('builtins', 'getattr'), ('builtins', 'setattr'), ('builtins', 'input'),
    ('builtins', 'breakpoint'), ('__builtin__', 'apply'), ('importlib', 'import_module'),
    ('runpy', 'run_path'), ('runpy', '_run_code'), ('code', 'InteractiveInterpreter'),
    ('pty', 'spawn'), ('ctypes', 'CDLL'), ('marshal', 'loads'), ('types', 'FunctionType'),
    ('pickle', 'loads'), ('_pickle', 'loads'), ('shutil', 'rmtree'), ('os', 'remove'),
    ('socket', 'create_connection'), ('urllib.request', 'urlopen'), ('webbrowser', 'open'),
    ('operator', 'attrgetter'), ('operator', 'methodcaller'), ('functools', 'partial'),
    ('timeit', 'timeit'), ('cProfile', 'run'), ('pdb', 'run'), ('bdb', 'Bdb'), ('sys', 'exit'),
    ('signal', 'raise_signal'), ('multiprocessing', 'Process'), ('threading', 'Thread'),
    ('asyncio', 'run'), ('numpy', 'load'), ('numpy', 'fromfile'), ('numpy', 'save'),
    ('numpy.testing._private.utils', 'runstring'), ('numpy.f2py.crackfortran', 'getlincoef'),
    ('paddle', 'load'), ('torch', 'load'), ('torch.hub', 'load'), ('yaml', 'unsafe_load'),
    ('copyreg', '_reconstructor'), ('codecs', 'open'), ('_codecs', 'decode'),
    ('zipfile', 'ZipFile'), ('tempfile', 'mktemp'), ('logging.config', 'listen'),
    ('distutils.core', 'run_setup'),
    ('pip', 'main'), ('site', 'main'), ('tkinter', 'Tk'), ('platform', 'popen'),
]


@pytest.mark.parametrize('module, name', CALLABLES)
@pytest.mark.parametrize('opcode', ['GLOBAL', 'STACK_GLOBAL', 'INST', 'NEWOBJ'])
def test_runs_nothing(tmp_path, module, name, opcode):
    target = tmp_path / 'ran'
    argument = f'open({str(target)!r}, "w").close()'.encode()
    text = b'X' + struct.pack('<I', len(argument)) + argument
    call = f'c{module}\n{name}\n'.encode()
    if opcode == 'STACK_GLOBAL':
        call = b''.join(b'X' + struct.pack('<I', len(part)) + part.encode()
                        for part in (module, name)) + b'\x93'
    data = b'\x80\x04' + call + text + (b'\x85\x81.' if opcode == 'NEWOBJ' else b'\x85R.')
    if opcode == 'INST':
        data = b'\x80\x04(' + text + f'i{module}\n{name}\n.'.encode()
    with pytest.raises(UserError) as error:
        safe_pickle.load(write(tmp_path, data))
    assert 'file.pdparams' in str(error.value)
    assert not target.exists()


def test_says_what_was_asked_for(tmp_path):
    with pytest.raises(UserError, match=r'file.pdparams: asks for os.system, .* nothing was run'):
        safe_pickle.load(write(tmp_path, b'cos\nsystem\n(X\x02\x00\x00\x00lstR.'))


def test_eval_is_never_run(tmp_path):
    """Paddle stores a static program's tensors as eval("data", {"data": array})."""
    class Tensor:
        def __init__(self, expression):
            self.expression = expression

        def __reduce__(self):
            return eval, (self.expression, {'data': np.ones(2)})
    good = safe_pickle.load(write(tmp_path, pickle.dumps({'w': Tensor('data')})))
    np.testing.assert_array_equal(good['w'], np.ones(2))
    with pytest.raises(UserError, match='builtins.eval'):
        safe_pickle.load(write(tmp_path, pickle.dumps({'w': Tensor('data.sum()')})))


BOMBS = {
    'huge bytes': b'\x80\x04\x8e' + struct.pack('<Q', 1 << 60) + b'x',
    'huge text': b'\x80\x04\x8d' + struct.pack('<Q', 1 << 60) + b'x',
    'huge bytearray': b'\x80\x05\x96' + struct.pack('<Q', 1 << 60) + b'x',
    'huge string': b'\x80\x02T' + struct.pack('<I', (1 << 32) - 1) + b'x',
    'huge integer': b'\x80\x02\x8b' + struct.pack('<i', (1 << 31) - 1) + b'x',
    'negative integer': b'\x80\x02\x8b' + struct.pack('<i', -1) + b'x',
    'huge memo index': b'\x80\x02Nr\xff\xff\xff\xff0.',
    'marks': b'\x80\x02' + b'(' * 1_000_000,
    'lists': b'\x80\x02' + b']' * 3_000_000,
    'deep tuple as a key': b'\x80\x02})' + b'\x85' * 1_000_000 + b'Ns.',
    'deep tuple as a shape': (b'\x80\x02cnumpy.core.multiarray\n_reconstruct\n)R(K\x01)'
                              + b'\x85' * 1_000_000 + b'NK\x00NtbN.'),
    'copies': (b'\x80\x02ccollections\nOrderedDict\nq\x01](' + b']' * 10_000 + b'eq\x02'
               + b'h\x01h\x02\x85R' * 10_000 + b'.'),
    'encoded again and again': (b'\x80\x02c_codecs\nencode\nq\x01X' + struct.pack('<I', 1_000_000)
                                + b'x' * 1_000_000 + b'q\x02' + b'h\x01h\x02\x85R' * 10_000 + b'.'),
    'nothing': b'', 'no end': b'\x80\x02N', 'empty stack': b'\x80\x02.',
    'reference': b'\x80\x02h\x01.',
    'text file': b'hello world\n', 'call of a number': b'\x80\x02K\x01)R.',
    'no name': b'\x80\x04K\x01K\x02\x93.', 'extension': b'\x80\x02\x82\x01.',
    'persistent': b'\x80\x02K\x01Q.', 'items of a number': b'\x80\x02K\x01K\x02K\x03s.',
    'state of a tuple': b'\x80\x02)K\x03b.', 'endless name': b'c' + b'x' * 1000,
    'wrong utf-8': b'\x80\x02X\x01\x00\x00\x00\xff.', 'odd items': b'\x80\x02}(K\x01u.',
}


@pytest.mark.parametrize('name', BOMBS)
def test_refuses_bombs(tmp_path, name):
    with pytest.raises(UserError, match='file.pdparams: '):
        safe_pickle.load(write(tmp_path, BOMBS[name]))


def test_sizes_are_checked_before_memory_is_taken(tmp_path):
    tree = pickle.dumps({'w': np.zeros((2, 3), 'f4')}, 4)
    shape = b'K\x02K\x03\x86'
    assert tree.count(shape) == 1
    wrong = tree.replace(shape, b'J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86')
    with pytest.raises(UserError, match='shape .* needs 18,446,744,056,529,682,436 bytes'):
        safe_pickle.load(write(tmp_path, wrong))


@pytest.mark.parametrize('array', [
    np.array([None, 'x'], dtype=object), np.zeros(2, dtype=[('a', 'f4')]), np.zeros(2, '>f4'),
    np.array(['text']), np.zeros(2, complex)], ids=lambda array: str(array.dtype))
def test_refuses_arrays_that_are_no_numbers(tmp_path, array):
    with pytest.raises(UserError, match='array'):
        safe_pickle.load(write(tmp_path, pickle.dumps({'w': array}, 4)))


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(UserError, match='Cannot read .*absent: No such file'):
        safe_pickle.load(tmp_path / 'absent')
    with pytest.raises(UserError, match='Cannot read .*: Is a directory'):
        safe_pickle.load(tmp_path)
