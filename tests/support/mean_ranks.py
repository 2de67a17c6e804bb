"""Three processes over Gloo: the means of their gradients, shared memory or not.

python tests/support/mean_ranks.py FOLDER      writes rank0.npz, rank1.npz, rank2.npz
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from common.machine.environment import share_cores, tune_cpu

# Chunks hold 1000 numbers: whole ones, parts, more than two of them, and single numbers.
SHAPES = [(1,), (999,), (40, 25), (3, 1111), (2,), (1500,)]


def work(folder):
    """Be one process: write "own", "shared", "again", "gloo" means and how each was computed."""
    import numpy as np
    import paddle
    import paddle.distributed as dist

    from common.training import gradient_mean

    dist.init_parallel_env()
    rank = dist.get_rank()
    gradient_mean.CHUNK, gradient_mean.BLOCK = 1000, 300
    generator = np.random.default_rng(rank)
    own = [generator.standard_normal(shape).astype('float32') for shape in SHAPES]
    parameters = [paddle.create_parameter(shape, 'float32') for shape in SHAPES]
    without_gradient = paddle.create_parameter([7], 'float32')

    def average(mean):
        for parameter, gradient in zip(parameters, own):
            parameter.clear_gradient(False)
            (parameter * paddle.to_tensor(gradient)).sum().backward()
        mean()
        assert without_gradient.grad is None
        return np.concatenate([parameter.grad.numpy().reshape(-1) for parameter in parameters])

    everything = [without_gradient, *parameters]
    result = {'own': np.concatenate([gradient.reshape(-1) for gradient in own])}
    shared = gradient_mean.GradientMean(everything)
    result['shared'], result['again'] = average(shared), average(shared)
    gloo = gradient_mean.GradientMean(everything, shared=False)
    result['gloo'] = average(gloo)
    gradient_mean.MEMORY_FOLDER = '/nowhere' if rank == 0 else '/dev/shm'
    missing = gradient_mean.GradientMean(everything)
    gradient_mean.MEMORY_FOLDER = '/dev/shm'
    if rank == 1:                               # as on another machine: no such file
        gradient_mean.open = open_nothing
    elsewhere = gradient_mean.GradientMean(everything)
    result['uses_slots'] = [mean.slots is not None for mean in (shared, gloo, missing, elsewhere)]
    np.savez(f'{folder}/rank{rank}.npz', **result)


def open_nothing(path, mode):
    raise FileNotFoundError(path)


if __name__ == '__main__':
    share_cores(3)
    tune_cpu()
    import paddle.distributed
    paddle.distributed.spawn(work, args=(sys.argv[1],), nprocs=3, backend='gloo')
