"""Damaged and malicious checkpoints: no code runs, nothing crashes, hangs or eats the memory.

Every case runs in a process of its own with 2 GiB of address space, an alarm
for each file and an audit hook that reports whatever a payload could do. The
model is a stand-in of the intact file's shapes.
"""

import collections
import io
import json
import os
import pickle
import random
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import zipfile

import numpy as np
import pytest

from tests.support.paths import FIXTURES, ROOT

WEIGHTS = os.path.join(FIXTURES, 'weights')
FILES = {
    'google': 'vit/google_npz/ViT-tiny_fixture.npz',
    'google_in21k': 'vit/google_npz_in21k/ViT-tiny_fixture_in21k.npz',
    'google_hybrid': 'vit/google_npz_hybrid/R-tiny+ViT-tiny_fixture.npz',
    'huggingface': 'vit/hf_vit/model.safetensors',
    'huggingface_bin': 'vit/hf_vit/pytorch_model.bin',
    'vit_pytorch': 'vit/jeonsworld_bin/fixture_checkpoint.bin',
    'mindcv': 'vit/mindcv_ckpt/vit_tiny.ckpt',
    'mindcv_crc': 'vit/mindcv_ckpt/vit_tiny_crc_sliced.ckpt',
    'mmpretrain': 'vit/mmpretrain_pth/epoch_3.pth',
    'paddleclas': 'vit/paddleclas_pdparams/ViT_tiny_fixture_pretrained.pdparams',
    'paddlevit': 'vit/paddlevit_pdparams/vit_tiny_fixture.pdparams',
    'paddlevit_training': 'vit/paddlevit_pdparams/Epoch-3-Loss-6.9.pdparams',
    'timm_pth': 'vit/timm_pth/model_wrapped.pth',
    'timm': 'vit/timm_safetensors/model.safetensors',
    't2t_paddle': 't2t/pdparams_performer_bare/tiny_t2t_performer.pdparams',
    't2t_zip': 't2t/performer_train_ckpt/model_best.pth.tar',
    't2t_legacy': 't2t/transformer_module_legacy/tiny_t2t_transformer.pth.tar',
}
SECONDS = 10
BYTES = 2 << 30

# What code from a file would do first.
FORBIDDEN = ('os.system', 'os.exec', 'os.posix_spawn', 'os.fork', 'os.spawn', 'subprocess.Popen',
             'exec', 'compile', 'import', 'socket.', 'ctypes.', 'pickle.find_class', 'marshal.',
             'shutil.', 'os.remove', 'os.rename', 'os.mkdir', 'os.chmod', 'os.putenv',
             'code.__new__', 'builtins.input', 'builtins.breakpoint', 'urllib.', 'webbrowser.',
             'pty.spawn', 'sys.setprofile', 'sys.settrace', 'signal.pthread_kill', 'os.kill',
             'object.__setattr__')

CALLABLES = ('os system', 'posix system', 'subprocess Popen', 'subprocess call', 'builtins eval',
             'builtins exec', 'builtins __import__', 'builtins open', 'builtins getattr',
             'builtins compile', 'builtins breakpoint', 'runpy run_path', 'importlib import_module',
             'pickle loads', 'marshal loads', 'types CodeType', 'types FunctionType', 'ctypes CDLL',
             'shutil rmtree', 'os remove', 'socket socket', 'webbrowser open', 'pty spawn',
             'operator methodcaller', 'functools partial', 'timeit timeit', 'pdb run',
             'torch.hub load', 'torch load', 'torch._utils _rebuild_device_tensor_from_numpy',
             'numpy load', 'numpy memmap', 'numpy.testing._private.utils runstring', 'sys exit',
             'os _exit', 'os abort', 'signal raise_signal', 'faulthandler _sigsegv',
             'ctypes string_at', '_ctypes dlopen', 'copyreg _reconstructor', 'codecs decode',
             'zipfile ZipFile')


@pytest.mark.parametrize('name', FILES)
@pytest.mark.runs
def test_mutated_files(name):
    run(name, 25)


@pytest.mark.slow
@pytest.mark.parametrize('name', FILES)
def test_many_mutated_files(name):
    run(name, 200)


def run(name, count):
    environment = {**os.environ, 'PYTHONPATH': ROOT, 'OPENBLAS_NUM_THREADS': '1'}
    done = subprocess.run([sys.executable, '-X', 'faulthandler', __file__, name, str(count)],
                          capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert outcome['files'] == count and outcome['refused'] > count // 3
    assert outcome['peak'] < BYTES


class Model:
    """Takes exactly what the intact file holds, as a real model would."""

    num_prefix_tokens = num_prefix_positions = 1

    def __init__(self, tensors):
        import paddle
        self.parameters = {name: paddle.zeros(tensor.shape) for name, tensor in tensors.items()}
        name = 'pos_embed' if 'pos_embed' in tensors else 'position_embedding'
        side = round((tensors[name].shape[1] - 1) ** 0.5)
        self.grid_size = (side, side)

    def state_dict(self):
        return self.parameters

    def get_numerics(self):
        return {'gelu': 'erf', 'layer_norm_eps': 1e-6}

    def set_numerics(self, **numerics):
        pass


def main(name, count):
    from common.errors import UserError
    from common.weights import load_pretrained
    from common.weights.read import read_weights
    path = os.path.join(WEIGHTS, FILES[name])
    with open(path, 'rb') as file:
        intact = file.read()
    generator = random.Random(name)
    checkpoint = read_weights(path)
    mutants = [mutate(intact, generator, number) for number in range(count)]
    refused, words = 0, collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        place = os.path.join(folder, 'mutant')
        load_pretrained(Model(checkpoint.tensors), path)        # imports what is still missing,
        'x'.encode('cp437')                                     # zipfile's own encoding,
        np.random.default_rng(0).standard_normal(1)             # and what NumPy imports late
        watch = Watch()
        sys.addaudithook(watch)
        resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
        for number, (kind, data) in enumerate(mutants):
            with open(place, 'wb') as file:
                file.write(data)
            print(name, number, kind, flush=True)
            model = Model(checkpoint.tensors)
            watch.on = True
            signal.alarm(SECONDS)
            try:
                report = load_pretrained(model, place)
            except UserError as error:
                refused += 1
                text = str(error)
                assert place in text and 20 < len(text) < 2000, text
                assert 'memory of this machine' not in text, text
                words[text.replace(place, '')[:30]] += 1
            else:
                assert report.loaded or report.missing
                assert all(model.parameters[loaded].value is not None for loaded in report.loaded)
            finally:
                signal.alarm(0)
                watch.on = False
            assert not watch.seen, watch.seen
    # Not ru_maxrss: a program that is started inherits the peak of the one that started it.
    with open('/proc/self/status') as file:
        peak = next(int(line.split()[1]) for line in file if line.startswith('VmHWM')) * 1024
    print(json.dumps({'files': len(mutants), 'refused': refused, 'peak': peak,
                      'messages': words.most_common(8)}))


class Watch:
    """An audit hook that remembers forbidden events."""

    def __init__(self):
        self.on, self.seen = False, []

    def __call__(self, event, arguments):
        if not self.on:
            return
        writes = event == 'open' and isinstance(arguments[1], str) and set('wax+') & set(
            arguments[1])
        fills = event == 'ctypes.cdata'         # a parameter's memory, which is being filled
        if writes or event.startswith(FORBIDDEN) and not fills:
            self.seen.append((event, str(arguments)[:100]))


def mutate(data, generator, number):
    """Return (kind, bytes): damage of one of ten kinds."""
    kinds = (truncate, flip_bits, flip_in_head, overwrite, set_huge, rename_key, change_shape,
             insert_or_delete, change_directory, plant_call)
    kind = kinds[number % len(kinds)]
    if data[:2] == b'PK' and generator.random() < 0.6 and kind not in (plant_call,
                                                                       change_directory):
        return f'{kind.__name__} inside', mutate_member(data, kind, generator)
    return kind.__name__, bytes(kind(bytearray(data), generator))


def mutate_member(data, kind, generator):
    """Damage a member of a zip and pack it again, so that its checksum is right."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(buffer, 'w') as target:
        names = source.namelist()
        pickles = [name for name in names if name.endswith('data.pkl')]
        chosen = pickles[0] if pickles and generator.random() < 0.8 else generator.choice(names)
        for info in source.infolist():
            content = source.read(info)
            if info.filename == chosen and len(content) > 10:
                content = bytes(kind(bytearray(content), generator))
            target.writestr(info.filename, content)
    return buffer.getvalue()


def truncate(data, generator):
    return data[:generator.choice([generator.randrange(len(data)), generator.randrange(200)])]


def flip_bits(data, generator):
    for _ in range(generator.choice([1, 1, 10, 1000])):
        data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
    return data


def flip_in_head(data, generator):
    for _ in range(generator.choice([1, 3, 20])):
        data[generator.randrange(min(4000, len(data)))] ^= 1 << generator.randrange(8)
    return data


def overwrite(data, generator):
    start = generator.randrange(len(data))
    length = generator.choice([4, 100, 5000])
    data[start:start + length] = bytes([generator.choice([0, 255, 0x28, 0x94])]) * length
    return data[:max(len(data), 1)]


def set_huge(data, generator):
    value = generator.choice([b'\xff' * 8, b'\xff\xff\xff\x7f', struct.pack('<Q', 1 << 40),
                              struct.pack('<I', 1 << 30)])
    for _ in range(generator.choice([1, 1, 5])):
        # Sizes stand before names, and names are in the first bytes or all over the file.
        place = generator.choice([generator.randrange(min(4000, len(data))),
                                  generator.randrange(len(data))])
        data[place:place + len(value)] = value
    return data


def find_all(data, word):
    places, start = [], data.find(word)
    while start >= 0 and len(places) < 300:
        places.append(start)
        start = data.find(word, start + 1)
    return places


def rename_key(data, generator):
    words = (b'norm', b'qkv', b'query', b'kernel', b'weight', b'bias', b'cls', b'embed', b'mlp',
             b'head', b'shape', b'torch', b'Storage', b'numpy', b'storage', b'F32', b'Float32')
    for _ in range(generator.choice([1, 3])):
        places = [(place, word) for word in words for place in find_all(data, word)]
        place, word = generator.choice(places or [(0, b'....')])
        data[place:place + len(word)] = bytes(generator.choice(b'abcXYZ019._/') for _ in word)
    return data


def change_shape(data, generator):
    """Change a number in a shape: small pickled integers, JSON, .npy headers, varints."""
    patterns = [b'K\x30', b'[48', b'(48', b'\x08\x30', b'M\x90\x00', b'K\x40', b'192', b'M\xc0\x00']
    places = [place for pattern in patterns for place in find_all(data, pattern)]
    for _ in range(generator.choice([1, 2])):
        place = generator.choice(places or range(len(data) - 4))
        data[place + 1:place + 3] = generator.choice(
            [b'\x00\x00', b'\xff\xff', b'99', b'\x31\x30', b'-1'])
    return data


def insert_or_delete(data, generator):
    place, length = generator.randrange(len(data)), generator.choice([1, 8, 1000])
    if generator.random() < 0.5:
        del data[place:place + length]
    else:
        data[place:place] = generator.randbytes(length)
    return data


def change_directory(data, generator):
    """Damage the end: a zip's directory, a checksum, the last numbers."""
    for _ in range(generator.choice([1, 4])):
        data[-generator.randrange(1, min(6000, len(data)))] = generator.randrange(256)
    return data


def plant_call(data, generator):
    """Put a call of something dangerous where the format holds a pickle, else in its place."""
    payload = make_payload(generator)
    if data[:2] != b'PK':
        if data[:1] == b'\x80' and generator.random() < 0.5:
            return data[:2] + payload + b'0' + data[2:]     # call it, drop the result, go on
        return b'\x80\x04' + payload + b'.'
    buffer, found = io.BytesIO(), False
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(buffer, 'w') as target:
        for info in source.infolist():
            content = source.read(info)
            if info.filename.endswith('data.pkl'):
                found = True
                content = generator.choice([
                    content[:2] + payload + content[2:],
                    content[:2] + payload + b'0' + content[2:],
                    b'\x80\x02' + payload + b'.',
                    b'\x80\x02}X\x05\x00\x00\x00model' + payload + b's.'])
            elif info.filename.endswith('.npy') and not found and generator.random() < 0.3:
                found = True
                array = np.lib.format.magic(1, 0) + struct.pack('<H', 118) + (
                    b"{'descr': '|O', 'fortran_order': False, 'shape': (), }".ljust(117) + b'\n')
                content = array + b'\x80\x04' + payload + b'.'
            target.writestr(info.filename, content)
    return buffer.getvalue()


def make_payload(generator):
    module, name = generator.choice(CALLABLES).split()
    argument = generator.choice([
        pickle.dumps("open('/tmp/ran', 'w')", 2)[2:-1], b'K\x0b', b'X\x02\x00\x00\x00id'])
    call = generator.choice([
        f'c{module}\n{name}\n'.encode() + argument + b'\x85R',
        b'(' + argument + f'i{module}\n{name}\n'.encode(),
        b'(' + f'c{module}\n{name}\n'.encode() + argument + b'o',
        f'c{module}\n{name}\n'.encode() + argument + b'\x85\x81',
        f'c{module}\n{name}\n'.encode() + b')' + b'}\x92',
        f'c{module}\n{name}\n'.encode() + b')\x81' + argument + b'b'])
    return call


if __name__ == '__main__':
    main(sys.argv[1], int(sys.argv[2]))
