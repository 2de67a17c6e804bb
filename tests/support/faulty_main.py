"""main_multi_gpu.py, one rank of which comes to grief: a program for the tests.

python tests/support/faulty_main.py KIND arguments...
KIND: raise, exit (os._exit), kill (SIGKILL), a signal's name (sent to the starting process), none,
or jobs: one run after the other in two processes, the arguments being a JSON list of lists.
"""

import json
import os
import signal
import sys
import time
from dataclasses import replace

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from common.cli import parse_command_line
from common.run.job import run
from common.run.launch import dist, run_multi  # tunes the CPU before Paddle is imported
from ViT.project import PROJECT

KIND = sys.argv[1]
SIGNAL = getattr(signal, KIND, None)        # for the starting process


class FaultyDataset:
    """The training images, until rank 1 (or, of a signal, rank 0) has read 40 of them."""

    def __init__(self, dataset):
        self.dataset = dataset
        self.left = 40

    def __getattr__(self, name):
        return getattr(self.dataset, name)

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, key):
        self.left -= 1
        if self.left == 0 and (dist.get_rank() == 1) == (SIGNAL is None):
            with open(os.environ['FAULT_TIME'], 'w') as file:
                file.write(str(time.time()))
            if KIND == 'raise':
                raise RuntimeError('rank 1 has had enough')
            if KIND == 'exit':
                print('rank 1 leaves', file=sys.stderr, flush=True)
                os._exit(7)
            os.kill(*((os.getppid(), SIGNAL) if SIGNAL else (os.getpid(), signal.SIGKILL)))
        return self.dataset[key]


def get_dataset(config, is_train):
    dataset = PROJECT.get_dataset(config, is_train)
    return FaultyDataset(dataset) if is_train and KIND != 'none' else dataset


def run_jobs(jobs):
    dist.init_parallel_env()
    for argv in jobs:
        run(PROJECT, parse_command_line(PROJECT, argv, 'main_multi_gpu.py'))


if __name__ == '__main__':
    if KIND == 'jobs':
        dist.spawn(run_jobs, (json.loads(sys.argv[2]),), nprocs=2, backend='gloo')
    else:
        sys.exit(run_multi(replace(PROJECT, get_dataset=get_dataset), sys.argv[2:]))
