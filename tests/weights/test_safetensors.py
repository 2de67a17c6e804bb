"""The reader of .safetensors takes what the reference implementation takes, and nothing else."""

import json
import os
import random

import numpy as np
import pytest

from common.errors import UserError
from common.weights import safetensors_file
from common.weights.containers import open_container

reference = pytest.importorskip('safetensors')

A = {'dtype': 'F32', 'shape': [2], 'data_offsets': [0, 8]}
B = {'dtype': 'F16', 'shape': [1, 2], 'data_offsets': [8, 12]}


def write(path, header, num_bytes=12):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    with open(path, 'wb') as file:
        file.write(len(text).to_bytes(8, 'little') + text + bytes(range(num_bytes)))


def read_ours(path):
    with open(path, 'rb') as file:
        start = file.read(64)
    assert safetensors_file.is_safetensors(start, os.path.getsize(path))
    return open_container(path).tree


@pytest.mark.parametrize('header, is_good', [
    ({'a': A, 'b': B}, True), ({'b': B, 'a': A}, True),
    ({'a': A, 'b': B, 'e': {'dtype': 'F32', 'shape': [0], 'data_offsets': [12, 12]}}, True),
    ({'__metadata__': {'format': 'pt'}, 'a': A, 'b': B}, True),
    ({'a': A, 'b': {**B, 'more': 1}}, True),
    ({'__metadata__': {'format': 1}, 'a': A, 'b': B}, False),
    ({'__metadata__': 'pt', 'a': A, 'b': B}, False),
    ({'a': A}, False), ({'b': B}, False),                               # a hole
    ({'a': A, 'b': {**B, 'data_offsets': [4, 8]}}, False),              # one over the other
    ({'a': A, 'c': A, 'b': B}, False), ({'a': A, 'b': {**B, 'data_offsets': [10, 14]}}, False),
    ({'a': A, 'b': {**B, 'data_offsets': [8]}}, False),
    ({'a': A, 'b': {**B, 'data_offsets': [8, 12, 12]}}, False),
    ({'a': A, 'b': {**B, 'data_offsets': [12, 8]}}, False),
    ({'a': A, 'b': {**B, 'data_offsets': [8.0, 12]}}, False),
    ({'a': A, 'b': {**B, 'data_offsets': '89'}}, False),
    ({'a': A, 'b': {**B, 'shape': [-1, -2]}}, False), ({'a': A, 'b': {**B, 'shape': {}}}, False),
    ({'a': A, 'b': {**B, 'shape': [1 << 70, 0], 'data_offsets': [8, 8]}}, False),
    ({'a': A, 'b': {**B, 'dtype': 'F17'}}, False), ({'a': A, 'b': [1]}, False),
    (b'{"a":NaN}', False), (b'{"\xff":1}', False), (b'{' * 20_000, False),
    (b'{"a":' + b'[' * 20_000 + b']' * 20_000 + b'}', False)])
def test_as_the_reference(tmp_path, header, is_good):
    path = str(tmp_path / 'a.safetensors')
    write(path, header)
    check(path, is_good)


def test_a_name_that_stands_there_twice(tmp_path):
    path = str(tmp_path / 'a.safetensors')
    for text in (b'{"a":%b,"a":%b}', b'{"a":{"dtype":"F32","dtype":"F16","shape":[2],'
                 b'"data_offsets":[0,8]},"b":%.0b%b}'):
        write(path, text % (json.dumps(A).encode(), json.dumps(B).encode()))
        with pytest.raises(UserError, match='twice'):
            read_ours(path)


def test_many_mutated_headers_as_the_reference(tmp_path):
    generator = random.Random(0)
    path, outcomes = str(tmp_path / 'a.safetensors'), {True: 0, False: 0}
    for _ in range(1500):
        header = json.loads(json.dumps({'a': A, 'b': B}))
        for _ in range(generator.choice([0, 1, 1, 2])):
            entry = header[generator.choice('ab')]
            key = generator.choice(['shape', 'data_offsets', 'data_offsets', 'dtype'])
            if key == 'dtype':
                entry[key] = generator.choice(['F32', 'F16', 'I64', 'BF16', 'BOOL', 'U8', '', 'f4'])
            else:
                numbers = entry[key]
                place = generator.randrange(len(numbers) + 1)
                numbers[place:place + generator.choice([0, 1, 1])] = [
                    generator.choice([0, 1, 2, 4, 8, 12, 1 << 31, 1 << 62, -1])]
        write(path, header, generator.choice([12, 12, 12, 11, 16, 0]))
        outcomes[check(path)] += 1
    assert min(outcomes.values()) > 100, outcomes


def check(path, is_good=None):
    """Compare both readers on a file; return whether they took it."""
    try:
        with reference.safe_open(path, 'numpy') as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except Exception as error:              # its own class, of several modules by version
        assert is_good is not True, error
        with pytest.raises(UserError, match='damaged|not supported'):
            read_ours(path)
        return False
    assert is_good is not False
    found = read_ours(path)
    assert {name: list(array.shape) for name, array in found.items()} == shapes
    if 'a' in found and found['a'].dtype == np.float32 and found['a'].size == 2:
        assert found['a'].tobytes() == bytes(range(8))
    return True
