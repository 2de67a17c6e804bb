"""Two machines: two launchers, each with an address of its own, train as one process does."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest

from tests.support.paths import ROOT, find_run

pytestmark = pytest.mark.runs

VIT = os.path.join(ROOT, 'ViT')
OPTIONS = ['-dataset=digits', '-data_path=', '-device=cpu', '-num_workers=0', '-opts',
           'TRAIN.NUM_STEPS', '8', 'TRAIN.WARMUP_STEPS', '2', 'REPORT_FREQ', '1',
           'MODEL.DEPTH', '2']
LIMIT = 300         # seconds


def find_port():
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def read_steps(output):
    """Return [(update, loss, rate)] of the one run below `output`."""
    with open(find_run(output) / 'metrics.jsonl') as file:
        entries = [json.loads(line) for line in file]
    return [(entry['update'], entry['loss'], entry['lr']) for entry in entries
            if entry['event'] == 'train_step']


def test_two_nodes_follow_one_process(tmp_path):
    common = {**os.environ, 'PYTHON': sys.executable, 'CFG': 'configs/vit_digits.yaml',
              'NNODES': '2', 'MASTER': f'127.0.0.1:{find_port()}', 'OMP_NUM_THREADS': '1'}
    nodes = []
    for rank, address in enumerate(('127.0.0.1', '127.0.0.2')):
        arguments = [f'-output={tmp_path}/nodes', '-batch_size=16', *OPTIONS]
        with open(tmp_path / f'node{rank}.txt', 'w') as output:
            nodes.append(subprocess.Popen(
                ['sh', os.path.join(VIT, 'run_train_multi.sh'), *arguments], cwd=tmp_path,
                env={**common, 'RANK': str(rank), 'POD_IP': address}, stdout=output,
                stderr=subprocess.STDOUT))
    try:
        codes = [node.wait(LIMIT) for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    said = [(tmp_path / f'node{rank}.txt').read_text() for rank in range(2)]
    assert codes == [0, 0], said

    subprocess.run([sys.executable, os.path.join(VIT, 'main_single_gpu.py'),
                    '-cfg=configs/vit_digits.yaml', f'-output={tmp_path}/one', '-batch_size=32',
                    *OPTIONS], check=True, timeout=LIMIT, capture_output=True)
    nodes, one = (np.array(read_steps(tmp_path / name)) for name in ('nodes', 'one'))
    assert len(one) == 8
    np.testing.assert_allclose(nodes, one, rtol=0, atol=1e-5)
    assert '2 processes' in ''.join(said)
