"""Peak memory of a training step with and without MODEL.RECOMPUTE.

    python benchmarks/recompute.py [CONFIG] [BATCH_SIZE]

Each is a process of its own; memory is the largest resident size that the system saw. By
default ViT-B/16 at 224, batch 8.
"""

import os
import resource
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)


def measure_step(name, batch_size, recompute):
    """Run two updates in this process; print the peak in MiB."""
    from ViT.config import get_config
    config = get_config(os.path.join(ROOT, 'ViT', 'configs', f'{name}.yaml'),
                        opts=['MODEL.RECOMPUTE', recompute])
    import paddle

    from common.training.optimizer import build_optimizer
    from ViT.vit import build_vit
    model = build_vit(config)
    model.train()
    optimizer = build_optimizer(config, model)
    images = paddle.randn([batch_size, 3, config.DATA.IMAGE_SIZE, config.DATA.IMAGE_SIZE])
    for _ in range(2):
        model(images).square().mean().backward()
        optimizer.step()
        optimizer.clear_grad(set_to_zero=False)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)


def main(name='vit_base_patch16_224', batch_size='8'):
    peaks = {}
    for recompute in ('False', 'True'):
        done = subprocess.run([sys.executable, __file__, '--step', name, batch_size, recompute],
                              check=True, capture_output=True, text=True)
        peaks[recompute] = int(done.stdout.split()[-1])
    plain, recomputed = peaks['False'], peaks['True']
    print(f'{name}, batch {batch_size}: {plain} MiB plain, {recomputed} MiB with MODEL.RECOMPUTE: '
          f'{100 * (1 - recomputed / plain):.0f} % less')


if __name__ == '__main__':
    if sys.argv[1:2] == ['--step']:
        measure_step(sys.argv[2], int(sys.argv[3]), sys.argv[4])
    else:
        main(*sys.argv[1:])
