"""Peak memory of a training step against PyTorch.

python -m benchmarks.memory [--peer_python PATH] [--batch_size 8]
"""

from benchmarks.contest import compare
from benchmarks.rows import main, ours, peer


def measure(options):
    """Return the table's row; the ratio is ours over the peer's."""
    results, failed = compare({
        'ours': ours('train', 'ViT/vit_base_patch16_224', options.batch_size, 'fast'),
        'eager': peer(options, 'train', 'vit_base_patch16_224', options.batch_size, 'eager'),
    }, repetitions=1)
    if 'eager' in failed:
        return [('peak memory, training step', 'eager', '', failed['eager'], '', '1.0 at most')]
    mine, other = results['ours'].peak, results['eager'].peak
    return [('peak memory, training step', 'eager', f'{mine / 1e9:.2f} GB',
             f'{other / 1e9:.2f} GB', f'{mine / other:.2f}', '1.0 at most')]


if __name__ == '__main__':
    main(__doc__, measure)
