"""This project as a contestant: python ours.py WORKLOAD OPTIONS, see contest.py.

train MODEL BATCH fast|plain|dropout|no_c [SIDE]   one optimizer update; dropout: fast, with 0.1 of
                                              both; no_c: fast, NumPy and Paddle for row_kernels.c
eval MODEL BATCH fast|plain|ENGINE PRECISION   one batch to logits
MODEL: a yaml, as "ViT/vit_base_patch16_224"; else without dropout, as the peers create theirs.
"""

import os
import sys
import tempfile

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), '..')
sys.path.insert(0, ROOT)

from common.machine.environment import tune_cpu  # noqa: E402

tune_cpu()

import numpy as np  # noqa: E402
import paddle  # noqa: E402

from benchmarks.contest import serve  # noqa: E402
from common.kernels import install, row_kernels  # noqa: E402
from common.machine.host_memory import release_freed_memory  # noqa: E402
from common.training.optimizer import build_optimizer, clip_gradients  # noqa: E402


def build(name, image_size=None, dropout=0.0):
    """Return (config, model) of a yaml file. dropout: of everything, attention too."""
    folder, name = name.split('/')
    if folder == 'ViT':
        from ViT.config import get_config
        from ViT.vit import build_vit as build_model
    else:
        from T2T_ViT.config import get_config
        from T2T_ViT.t2t_vit import build_t2t_vit as build_model
    flags = {'MODEL.DROPOUT': dropout, 'MODEL.ATTENTION_DROPOUT': dropout, 'MODEL.DROPPATH': 0.0}
    if image_size:
        flags['DATA.IMAGE_SIZE'] = image_size
    config = get_config(os.path.join(ROOT, folder, 'configs', f'{name}.yaml'), flags=flags)
    paddle.seed(0)
    return config, build_model(config)


def make_images(config, batch_size):
    generator = np.random.default_rng(0)
    size = config.DATA.IMAGE_SIZE
    return generator.standard_normal((batch_size, 3, size, size)).astype('float32')


def make_train_step(name, batch_size, how, image_size=None):
    """Return a function that makes one update: forward, backward, clip, AdamW."""
    config, model = build(name, image_size, 0.1 if how == 'dropout' else 0.0)
    if how == 'no_c':
        row_kernels.load_kernels = lambda: None
    if how != 'plain':
        install(model, 'cpu')
    optimizer = build_optimizer(config, model)
    parameters = [p for p in model.parameters() if not p.stop_gradient]
    images = paddle.to_tensor(make_images(config, batch_size))
    labels = paddle.to_tensor(np.arange(batch_size) % config.MODEL.NUM_CLASSES)
    optimizer.set_lr(1e-4)
    model.train()

    def step():
        loss = paddle.nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        clip_gradients(parameters, 1.0)
        optimizer.step()
        optimizer.clear_grad(set_to_zero=False)
        loss.item()
    step()
    release_freed_memory()          # as the training loop does after its first update
    return step


def make_evaluation(name, batch_size, how, precision='float32', image_size=None):
    """Return a function that computes the logits of one batch."""
    config, model = build(name, image_size)
    images = make_images(config, batch_size)
    model.eval()
    if how in ('fast', 'plain'):
        if how == 'fast':
            install(model, 'cpu')
        tensor = paddle.to_tensor(images)

        def evaluate():
            with paddle.no_grad():
                model(tensor).numpy()
        return evaluate
    from common.deploy import engine as engines
    from common.deploy.export import save_program
    from common.deploy.predict import get_forward
    from common.machine.host_memory import keep_freed_memory
    keep_freed_memory()
    folder = tempfile.mkdtemp()
    weights = save_program(model, config.DATA.IMAGE_SIZE, folder,
                           None if precision == 'int8' else get_forward(model))
    if how == 'openvino' and precision != 'float32':
        write_openvino(folder, config, weights, precision)
    run = engines.OPENERS[how](folder, precision)
    return lambda: run(images)


def write_openvino(folder, config, weights, precision):
    """Write OpenVINO's model; the ranges of int8 are those of noise, which cost the same time."""
    from common.data.preprocessing import read_preprocessing
    from common.deploy.export import convert_to_onnx
    from common.deploy.formats import find_onnx, find_openvino
    from common.deploy.quantize import convert_to_openvino, quantize
    convert_to_onnx(folder)
    if precision != 'int8':
        return convert_to_openvino(find_onnx(folder), find_openvino(folder))
    shape = (16, config.DATA.IMAGE_SIZE, config.DATA.IMAGE_SIZE, 3)
    crops = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    names = list(weights)
    quantize('openvino', find_onnx(folder), find_openvino(folder), crops,
             read_preprocessing(config), names, [names[0], names[-1]])


def main():
    workload, name, batch_size, *options = sys.argv[1:]
    make = {'train': make_train_step, 'eval': make_evaluation}[workload]
    options[2 if workload == 'eval' else 1:] = map(int, options[2 if workload == 'eval' else 1:])
    serve(make(name, int(batch_size), *options))


if __name__ == '__main__':
    main()
