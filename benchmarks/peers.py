"""The peers as contestants: python peers.py WORKLOAD MODEL BATCH KIND [PRECISION], see contest.py.

train: KIND eager, compiled or dropout, which is eager with 0.1 of everything.
eval: KIND eager, compiled, onnxruntime or openvino.
MODEL: a name of timm, or "t2t_vit_14" with T2T_VIT naming a checkout of the official code.
Every peer gets two settings beside its defaults: all cores as threads, and freed memory kept.
"""

import io
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..'))

from benchmarks.contest import keep_freed_memory, serve
from benchmarks.torch_setup import prepare_torchvision

keep_freed_memory()
prepare_torchvision()

import torch  # noqa: E402


def build(name, **options):
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    if name == 't2t_vit_14':
        if 'T2T_VIT' not in os.environ:
            raise RuntimeError('set T2T_VIT to a checkout of yitu-opensource/T2T-ViT')
        sys.path.insert(0, os.environ['T2T_VIT'])
        from models.t2t_vit import t2t_vit_14
        return t2t_vit_14(**options)
    import timm
    return timm.create_model(name, **options)


def make_train_step(name, batch_size, kind):
    rates = dict.fromkeys(('proj_drop_rate', 'attn_drop_rate', 'pos_drop_rate'), 0.1)
    model = build(name, **rates if kind == 'dropout' else {}).train()
    network = torch.compile(model) if kind == 'compiled' else model
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, weight_decay=0.05)
    images = torch.randn(batch_size, 3, 224, 224)
    labels = torch.arange(batch_size) % 1000

    def step():
        loss = torch.nn.functional.cross_entropy(network(images), labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
    return step


def make_evaluation(name, batch_size, kind, precision='float32'):
    model = build(name).eval()
    images = torch.randn(batch_size, 3, 224, 224)
    if kind == 'openvino':
        return run_openvino(model, images, precision)
    if kind == 'onnxruntime':
        return run_onnx(model, images)
    network = torch.compile(model) if kind == 'compiled' else model

    def evaluate():
        with torch.inference_mode(), torch.autocast('cpu', torch.bfloat16,
                                                    enabled=precision == 'bfloat16'):
            network(images).float().numpy()
    return evaluate


def run_openvino(model, images, precision):
    import openvino
    converted = openvino.convert_model(model, example_input=images)
    kind = {'float32': openvino.Type.f32, 'bfloat16': openvino.Type.bf16}[precision]
    compiled = openvino.Core().compile_model(converted, 'CPU', {
        'INFERENCE_PRECISION_HINT': kind, 'PERFORMANCE_HINT': 'LATENCY'})
    request, array = compiled.create_infer_request(), images.numpy()
    return lambda: request.infer([array])


def run_onnx(model, images):
    import onnxruntime
    file = io.BytesIO()
    torch.onnx.export(model, (images,), file, input_names=['images'], opset_version=17,
                      dynamo=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    session = onnxruntime.InferenceSession(file.getvalue(), options,
                                           providers=['CPUExecutionProvider'])
    array = images.numpy()
    return lambda: session.run(None, {'images': array})


def main():
    workload, name, batch_size, *options = sys.argv[1:]
    make = {'train': make_train_step, 'eval': make_evaluation}[workload]
    serve(make(name, int(batch_size), *options))


if __name__ == '__main__':
    main()
