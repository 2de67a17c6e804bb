"""Two processes over Gloo, two micro-batches each: the gradients of the plain and the fast model.

python tests/support/fast_parallel.py RESULT.npz
"""

import contextlib
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from common.machine.environment import share_cores, tune_cpu


def work(path):
    """Be one process: write {"plain.NAME" and "fast.NAME": gradient} as rank 0."""
    import numpy as np
    import paddle
    import paddle.distributed as dist

    from common.kernels import install
    from tests.support.numpy_dropout import dropout_by_numpy
    from ViT.vit import VisionTransformer

    dist.init_parallel_env()
    paddle.seed(1)
    model = VisionTransformer(image_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=4,
                              num_classes=10, droppath=0.2, dropout=0.1)
    network = paddle.DataParallel(model)
    result = {}
    for kind in ('plain', 'fast'):
        if kind == 'fast':
            install(model, 'cpu')
        paddle.seed(2 + dist.get_rank())
        generator = np.random.default_rng(dist.get_rank())
        images = generator.standard_normal((4, 3, 32, 32)).astype('float32')
        with dropout_by_numpy(model) if kind == 'plain' else contextlib.nullcontext():
            with network.no_sync():
                network(paddle.to_tensor(images[:2])).square().mean().backward()
            network(paddle.to_tensor(images[2:])).square().mean().backward()
        for name, parameter in model.named_parameters():
            result[f'{kind}.{name}'] = parameter.grad.numpy()
            parameter.clear_gradient(False)
    if dist.get_rank() == 0:
        np.savez(path, **result)


if __name__ == '__main__':
    share_cores(2)
    tune_cpu()
    import paddle.distributed
    paddle.distributed.spawn(work, args=(sys.argv[1],), nprocs=2, backend='gloo')
