"""Classify pictures with the exported model beside this file: python infer.py sample.png

Needs NumPy, Pillow and what runs a model that is here: openvino (model.xml), onnxruntime
(model.onnx) or paddlepaddle; nothing of the project that made it, whose export_model.py copies
this file. Prints the five best classes of each picture.
"""

import importlib.util
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

FOLDER = Path(__file__).resolve().parent
# Pillow knows more formats; one of them, PostScript, would run programs.
FORMATS = ('JPEG', 'PNG', 'BMP', 'GIF', 'WEBP', 'TIFF', 'PPM')


def prepare(path: str, settings: dict) -> np.ndarray:
    """Return the model's input, float32 [1, 3, S, S]: resized, cropped and normalised."""
    image: Image.Image = Image.open(path, formats=FORMATS)
    if settings['exif_orientation']:
        image = ImageOps.exif_transpose(image)
    size, (width, height) = settings['image_size'], image.size
    shorter = math.floor(size / settings['crop_pct'])
    resized = (shorter, int(shorter * height / width)) if width <= height else \
        (int(shorter * width / height), shorter)
    left, top = (round((side - size) / 2) for side in resized)
    filter = Image.Resampling[settings['interpolation'].upper()]
    image = image.convert('RGB').resize(resized, filter).crop((left, top, left + size, top + size))
    pixels = (np.asarray(image, np.float32) / 255 - settings['mean']) / settings['std']
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None], np.float32)


def open_model() -> Callable[[np.ndarray], np.ndarray]:
    """Return run(images) -> logits [1, classes], of the first model here whose engine is too."""
    for name, module in (('model.xml', 'openvino'), ('model.onnx', 'onnxruntime')):
        if (FOLDER / name).exists() and importlib.util.find_spec(module):
            return OPENERS[module](FOLDER / name)
    return open_paddle()


def open_openvino(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Return run(images) -> logits of OpenVINO."""
    import openvino
    # Left to itself OpenVINO computes in bfloat16 where the processor has it.
    model = openvino.Core().compile_model(str(path), 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})
    return lambda images: model(images)[0]


def open_onnx(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Return run(images) -> logits of ONNX Runtime."""
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3          # errors
    session = onnxruntime.InferenceSession(
        str(path), options, providers=['CPUExecutionProvider'])
    return lambda images: session.run(None, {session.get_inputs()[0].name: images})[0]


def open_paddle() -> Callable[[np.ndarray], np.ndarray]:
    """Return run(images) -> logits of Paddle's own engine."""
    from paddle import inference
    program = next(FOLDER / name for name in ('model.json', 'model.pdmodel')
                   if (FOLDER / name).exists())
    config = inference.Config(str(program), str(FOLDER / 'model.pdiparams'))
    config.disable_glog_info()
    config.disable_mkldnn()
    predictor = inference.create_predictor(config)
    source = predictor.get_input_handle(predictor.get_input_names()[0])
    target = predictor.get_output_handle(predictor.get_output_names()[0])

    def run(images):
        source.copy_from_cpu(images)
        predictor.run()
        return target.copy_to_cpu()
    return run


OPENERS = {'openvino': open_openvino, 'onnxruntime': open_onnx}


def main(paths: list[str]) -> None:
    """Print the five best classes of each picture."""
    settings = json.loads((FOLDER / 'preprocessing.json').read_text(encoding='utf-8'))
    run = open_model()
    for path in paths:
        logits = run(prepare(path, settings))[0].astype(np.float64)
        shares = np.exp(logits - logits.max())
        shares /= shares.sum()
        print(path)
        for index in np.argsort(-logits, kind='stable')[:5]:
            names = settings['class_names']
            print(f'{shares[index]:8.1%}  {names[index] if names else index}')


if __name__ == '__main__':
    main(sys.argv[1:])
