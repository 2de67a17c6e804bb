"""Evaluation against PyTorch, ONNX Runtime and OpenVINO: a batch to logits; images a second.

python -m benchmarks.evaluate [--peer_python PATH] [--repetitions 5] [--batch_size 8]

Ours is the engine that -eval and predict.py take on this machine, "dynamic" the model
without export.
"""

from benchmarks.rows import compare_rows, main, ours, peer

VIT = ('ViT/vit_base_patch16_224', 'vit_base_patch16_224')
T2T = ('T2T_ViT/t2t_vit_14', 't2t_vit_14')
ROWS = {
    'evaluation, float32': (VIT, 'openvino', 'float32', {
        'eager': 2.2, 'compiled': 2.0, 'onnxruntime': 1.1, 'openvino': 1.0}),
    'evaluation, bfloat16': (VIT, 'onednn', 'bfloat16', {'eager': 1.35, 'openvino': 0.95}),
    'T2T-ViT-14, float32': (T2T, 'onednn', 'float32', {'eager': 2.4}),
    'T2T-ViT-14, bfloat16': (T2T, 'onednn', 'bfloat16', {'eager': 1.3}),
}

# Against float32 of the peers; int8 as export_model.py makes it, by OpenVINO.
INT8 = {'ViT-B/16, int8': (VIT, {'ours, float32': 3.0, 'ours, bfloat16': 1.6, 'eager': 4.0}),
        'T2T-ViT-14, int8': (T2T, {'ours, float32': 2.0})}


def measure(options):
    """Return the table's rows."""
    rows = []
    for title, ((name, peer_name), engine, precision, targets) in ROWS.items():
        batch_size = options.batch_size
        contestants = {'ours': ours('eval', name, batch_size, engine, precision)}
        if precision == 'float32':
            contestants['dynamic'] = ours('eval', name, batch_size, 'fast')
            contestants['plain'] = ours('eval', name, batch_size, 'plain')
        for kind in targets:
            contestants[kind] = peer(options, 'eval', peer_name, batch_size, kind, precision)
        rows += compare_rows(title, contestants, options, targets)
    for title, ((name, peer_name), targets) in INT8.items():
        contestants = {'ours': ours('eval', name, options.batch_size, 'openvino', 'int8')}
        for precision in ('float32', 'bfloat16'):
            contestants[f'ours, {precision}'] = ours(
                'eval', name, options.batch_size, 'openvino', precision)
        for kind in ('eager', 'compiled', 'onnxruntime', 'openvino'):
            contestants[kind] = peer(options, 'eval', peer_name, options.batch_size, kind)
        rows += compare_rows(title, contestants, options, targets)
    return rows


if __name__ == '__main__':
    main(__doc__, measure)
