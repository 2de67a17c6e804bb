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
    gradient_mean.CHUNK, gradient_mean.ADDED_AT_ONCE = 1000, 300
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
    create, open_memory = gradient_mean.create_memory, gradient_mean.open_memory
    if rank == 0:
        gradient_mean.create_memory = lambda size, token: (None, None)
    missing = gradient_mean.GradientMean(everything)
    gradient_mean.create_memory = create
    if rank == 1:                               # as on another machine: no such file
        gradient_mean.open_memory = lambda path, size, token: open_memory('/nowhere', size, token)
    elsewhere = gradient_mean.GradientMean(everything)
    if rank == 1:                               # as in another container: another's file
        gradient_mean.open_memory = lambda path, size, token: open_memory(
            path, size, bytes(len(token)))
    foreign = gradient_mean.GradientMean(everything)
    result['uses_slots'] = [mean.slots is not None
                            for mean in (shared, gloo, missing, elsewhere, foreign)]
    result['descriptors'] = [len([path for path in list_descriptors() if 'gradients' in path])]
    np.savez(f'{folder}/rank{rank}.npz', **result)


def list_descriptors():
    """Return what this process's descriptors lead to."""
    folder = '/proc/self/fd'
    return [os.readlink(f'{folder}/{name}') for name in os.listdir(folder)
            if os.path.lexists(f'{folder}/{name}')]


if __name__ == '__main__':
    share_cores(3)
    tune_cpu()
    import paddle.distributed
    paddle.distributed.spawn(work, args=(sys.argv[1],), nprocs=3, backend='gloo')
