"""Exported folders, damaged in every file: used or refused, and nothing but what computes runs.

Of Paddle's, ONNX's and OpenVINO's files; what passes the checks is run by each engine that is
installed, in a process of its own.
"""

import collections
import importlib
import io
import json
import os
import random
import resource
import shutil
import signal
import zipfile

import numpy as np
import pytest
from paddle import inference

from common.deploy import engine as engines
from common.deploy.formats import find_openvino
from common.deploy.preprocessing import load_preprocessing, write_preprocessing
from common.errors import UserError
from tests.support.exported import export_small_vit, make_onnx
from tests.support.trained_digits import load_fixture
from tests.support.watch import Watch

PACKAGES = [name for name in ('onnxruntime', 'openvino') if engines.is_installed(name)]
HAS_PADDLES_OPENVINO = hasattr(inference.Config, 'enable_openvino_engine')
WORDS = (b'save', b'load', b'print', b'py_func', b'while', b'full', b'1.if', b'matmul', b'-1',
         b'99')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    path = export_small_vit(str(tmp_path_factory.mktemp('exported') / 'vit'))
    write_preprocessing(load_fixture('vit')[1].preprocessing, path)
    if engines.is_installed('paddle2onnx'):
        from common.deploy.export import convert_to_onnx
        convert_to_onnx(path)
    else:
        with open(engines.find_onnx(path), 'wb') as file:
            file.write(make_onnx([{'op_type': 'Add', 'inputs': ['a'], 'outputs': ['b']}]))
    return path


@pytest.fixture(scope='module')
def openvino_files(folder):
    """{name: bytes} of the same model for OpenVINO; {} where its package is missing."""
    if not {'paddle2onnx', 'openvino'} <= set(filter(
            engines.is_installed, ('paddle2onnx', 'openvino'))):
        return {}
    from common.deploy.quantize import convert_to_openvino
    path = find_openvino(folder)
    convert_to_openvino(engines.find_onnx(folder), path)
    files = {}
    for name in (path, f'{path.removesuffix(".xml")}.bin'):
        files[os.path.basename(name)] = np.fromfile(name, np.uint8).tobytes()
        os.remove(name)         # or the program would not be run by the OpenVINO inside Paddle
    return files


def mutate(content, generator):
    content = bytearray(content)
    for _ in range(generator.choice([1, 1, 2, 5])):
        place = generator.randrange(max(1, len(content)))
        how = generator.randrange(5)
        if how == 0:
            content[place:place + 1] = bytes([generator.randrange(256)])
        elif how == 1:
            content[place:place + 5] = generator.choice([b'\xff' * 5, bytes(5), b'99999'])
        elif how == 2:
            del content[place:place + generator.choice([1, 8, 1000])]
        elif how == 3:
            content[place:place] = content[:generator.choice([1, 8, 300])]
        else:
            word = generator.choice(WORDS)
            content[place:place + len(word)] = word
    return bytes(content)


def mutate_tree(content, generator):
    """Change a leaf of a JSON tree, which stays one."""
    tree = json.loads(content)
    branch, key = tree, None
    while isinstance(branch, (dict, list)) and branch:
        parent, key = branch, generator.choice(list(branch) if isinstance(branch, dict)
                                               else range(len(branch)))
        branch = parent[key]
    parent[key] = generator.choice([None, -1, 0, 1, 7, 1 << 40, 0.5, 'x', [], {}, [1], True,
                                    '1.save'])
    return json.dumps(tree).encode()


def mutate_npz(content, generator):
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(buffer, 'w') as target:
        for name in source.namelist():
            part = source.read(name)
            target.writestr(name, mutate(part, generator) if generator.random() < 0.5 else part)
    return buffer.getvalue()


def run_in_child(folder, engine):
    """Return how an engine's trial ends, in a process of its own as the product has it."""
    child = os.fork()
    if child == 0:
        status = 3
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))
            signal.alarm(10)
            watch = Watch()
            with watch:
                problem = 'none'
                try:
                    problem = engines.run_trial(folder, engine, 'float32', 1).problem
                except Exception as error:      # what engine.main writes as the problem
                    problem = str(error) or 'unknown'
            status = 4 if watch.seen else 1 if problem else 0
        finally:
            os._exit(status)
    _, status, usage = os.wait4(child, 0)
    assert usage.ru_maxrss < 2 << 20                        # KiB
    return 'slow' if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM else \
        'crashed' if os.WIFSIGNALED(status) else {0: 'right', 1: 'wrong', 4: 'does more'}.get(
            os.WEXITSTATUS(status), 'failed')


def choose_engine(name, generator):
    """Return the name of an installed engine that reads a file of this name, None without any."""
    if name.endswith('.onnx'):
        return 'onnxruntime' if 'onnxruntime' in PACKAGES else None
    if name.endswith(('.xml', '.bin')):
        return 'openvino'
    if name.endswith(('.json', '.pdmodel', '.pdiparams')):
        return generator.choice(['plain', 'onednn'] + ['openvino'] * HAS_PADDLES_OPENVINO)
    return None


@pytest.mark.runs
@pytest.mark.parametrize('count', [
    150, pytest.param(3000, marks=pytest.mark.slow)], ids=['short', 'long'])
def test_damaged_folders(folder, openvino_files, tmp_path, count):
    program = engines.find_program(folder)
    names = [os.path.basename(path) for path in (
        program, program, program, engines.find_onnx(folder))]
    names += ['model.pdiparams', 'check.npz', 'preprocessing.json', *openvino_files]
    intact = {name: openvino_files.get(name) or np.fromfile(
        os.path.join(folder, name), np.uint8).tobytes() for name in names}
    copy = str(shutil.copytree(folder, tmp_path / 'copy'))
    before, watch = sorted(os.listdir(copy)), Watch()
    'x'.encode('cp437')             # which zipfile imports when it meets it
    for package in PACKAGES:
        importlib.import_module(package)
    generator, outcomes, ends = random.Random(count), collections.Counter(), collections.Counter()
    for number in range(count):
        name = names[number % len(names)]
        mutations = [mutate] + [mutate_tree] * 2 * name.endswith('.json') + [
            mutate_npz] * 2 * name.endswith('.npz')
        written = openvino_files if name in openvino_files else (name,)
        for other in written:
            with open(os.path.join(copy, other), 'wb') as file:
                file.write(generator.choice(mutations)(intact[name], generator)
                           if other == name else intact[other])
        signal.alarm(10)
        try:
            with watch:
                engines.check_folder(copy)
                engines.read_check(copy)
                load_preprocessing(copy)
        except UserError as error:
            outcomes['refused'] += 1
            assert copy in str(error) and len(str(error)) < 1000, error
        else:
            outcomes['passed'] += 1
            signal.alarm(0)
            engine = choose_engine(name, generator)
            if engine is not None and name != 'preprocessing.json':
                ends[engine, run_in_child(copy, engine)] += 1
        finally:
            signal.alarm(0)
            for other in written:
                if other in openvino_files:
                    os.remove(os.path.join(copy, other))
                else:
                    with open(os.path.join(copy, other), 'wb') as file:
                        file.write(intact[other])
    print(count, outcomes, ends)
    assert not watch.seen and sorted(os.listdir(copy)) == before
    assert not {'slow', 'does more'} & {end for _, end in ends}, ends
    assert outcomes['refused'] > count // 2 and outcomes['passed'] > count // 50, outcomes
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 2 << 20     # KiB
