"""Classify pictures with the model in this folder: python infer.py sample.png

Needs its engine, NumPy and Pillow. Prints the five best classes of each picture; of sample.png,
whose answer is in sample.json, where none is named.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

FOLDER = Path(__file__).resolve().parent
FORMATS = ('JPEG', 'PNG', 'BMP', 'GIF', 'WEBP', 'TIFF', 'PPM')      # others may run programs


def prepare(path: str, settings: dict) -> np.ndarray:
    """Return a picture as float32 [1, 3, S, S]: resized, cropped and normalised."""
    image: Image.Image = Image.open(path, formats=FORMATS)
    image = ImageOps.exif_transpose(image) if settings['exif_orientation'] else image
    size, (width, height) = settings['image_size'], image.size
    shorter = int(size / settings['crop_pct'])
    sides = [shorter if side == min(width, height) else int(shorter * side / min(width, height))
             for side in (width, height)]
    left, top = (round((side - size) / 2) for side in sides)
    filter = Image.Resampling[settings['interpolation'].upper()]
    image = image.convert('RGB').resize(sides, filter).crop((left, top, left + size, top + size))
    pixels = (np.asarray(image, np.float32) / 255 - settings['mean']) / settings['std']
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None], np.float32)


def open_openvino() -> Callable[[np.ndarray], np.ndarray]:
    """Return run(images) -> logits [1, classes]."""
    import openvino
    precision = {'INFERENCE_PRECISION_HINT': 'f32'}     # else bfloat16 where the processor has it
    model = openvino.Core().compile_model(str(FOLDER / 'model.xml'), 'CPU', precision)
    return lambda images: model(images)[0]


def open_onnxruntime() -> Callable[[np.ndarray], np.ndarray]:
    """Return run(images) -> logits [1, classes]."""
    import onnxruntime
    onnxruntime.set_default_logger_severity(3)          # errors
    session = onnxruntime.InferenceSession(
        str(FOLDER / 'model.onnx'), providers=['CPUExecutionProvider'])
    return lambda images: session.run(None, {session.get_inputs()[0].name: images})[0]


def open_paddle() -> Callable[[np.ndarray], np.ndarray]:
    """Return run(images) -> logits [1, classes]."""
    import warnings
    warnings.filterwarnings('ignore', message='No ccache found')        # nothing here needs it
    from paddle import inference
    program = FOLDER / ('model.json' if (FOLDER / 'model.json').exists() else 'model.pdmodel')
    config = inference.Config(str(program), str(FOLDER / 'model.pdiparams'))
    config.disable_glog_info()
    config.disable_mkldnn()
    predictor = inference.create_predictor(config)

    def run(images):
        predictor.get_input_handle(predictor.get_input_names()[0]).copy_from_cpu(images)
        predictor.run()
        return predictor.get_output_handle(predictor.get_output_names()[0]).copy_to_cpu()
    return run


def show(text: str) -> str:
    """Return a name as it can be printed, whatever it holds: letters, no commands to terminals."""
    letters = text if text.isprintable() else text.encode(
        'unicode_escape', 'backslashreplace').decode('ascii')
    encoding = sys.stdout.encoding
    return letters.encode(encoding, 'backslashreplace').decode(encoding)


def main(paths: list[str], run: Callable[[np.ndarray], np.ndarray]) -> None:
    """Print the five best classes of each picture."""
    settings = json.loads((FOLDER / 'preprocessing.json').read_text(encoding='utf-8'))
    names = settings['class_names']
    for path in paths:
        logits = run(prepare(path, settings))[0].astype(np.float64)
        shares = np.exp(logits - logits.max())
        print(show(path))
        for index in np.argsort(-logits, kind='stable')[:5]:
            print(f'{shares[index] / shares.sum():8.1%}  {show(names[index]) if names else index}')


if __name__ == '__main__':
    main(sys.argv[1:] or [str(FOLDER / 'sample.png')], open_paddle())
