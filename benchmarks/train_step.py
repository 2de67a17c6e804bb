"""Training step against PyTorch: forward, backward, clipping, AdamW; images a second.

python -m benchmarks.train_step [--peer_python PATH] [--repetitions 5] [--batch_size 8]
"""

from benchmarks.rows import compare_rows, main, ours, peer

ROWS = {
    'training step, ViT-B/16': (
        'train', 'ViT/vit_base_patch16_224', 'vit_base_patch16_224', ('eager', 'compiled')),
    'training step, T2T-ViT-14': ('train', 'T2T_ViT/t2t_vit_14', 't2t_vit_14', ('eager',)),
}
# 'no C' is what row_kernels.c has to earn its place with.
TARGETS = {'training step, ViT-B/16': {'eager': 1.1, 'compiled': 1.0, 'no C': 1.05},
           'training step, T2T-ViT-14': {'eager': 1.1, 'no C': 1.05}}
DROPOUT = ('base', 'tiny')


def measure(options):
    """Return the table's rows."""
    rows = []
    for title, (workload, name, peer_name, kinds) in ROWS.items():
        contestants = {'ours': ours(workload, name, options.batch_size, 'fast'),
                       'plain': ours(workload, name, options.batch_size, 'plain'),
                       'no C': ours(workload, name, options.batch_size, 'no_c')}
        for kind in kinds:
            contestants[kind] = peer(options, workload, peer_name, options.batch_size, kind)
        rows += compare_rows(title, contestants, options, TARGETS[title])
    for size in DROPOUT:
        title, name, peer_name = (text.format(size=size) for text in (
            'training step with dropout, vit_{size}_patch16', 'ViT/vit_{size}_patch16_224',
            'vit_{size}_patch16_224'))
        contestants = {'ours': ours('train', name, options.batch_size, 'dropout'),
                       'ours, no dropout': ours('train', name, options.batch_size, 'fast'),
                       'eager': peer(options, 'train', peer_name, options.batch_size, 'dropout')}
        rows += compare_rows(title, contestants, options, {'eager': 1.1, 'ours, no dropout': 0.893})
    return rows


if __name__ == '__main__':
    main(__doc__, measure)
