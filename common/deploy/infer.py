"""Classify pictures with the model in this folder: python infer.py PICTURE_OR_FOLDER ...

Needs its engine, NumPy and Pillow. Prints the five best classes of each picture; of sample.png,
whose answer is in sample.json, where none is named. Exit code 1: one could not be read.
"""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

FOLDER = Path(__file__).resolve().parent
FORMATS = ('JPEG', 'PNG', 'BMP', 'GIF', 'WEBP', 'TIFF', 'PPM')      # others may run programs


def find_pictures(names: list[str]) -> Iterator[str]:
    """Yield the files that are named, and the pictures in folders by their endings."""
    endings = {ending for ending, form in Image.registered_extensions().items() if form in FORMATS}
    for name in names:
        found = sorted(str(file) for file in Path(name).rglob('[!.]*')
                       if file.suffix.lower() in endings)
        yield from found or [name]


def prepare(path: str, settings: dict) -> np.ndarray:
    """Return a picture as float32 [1, 3, S, S]: resized, cropped and normalised."""
    image: Image.Image = Image.open(path, formats=FORMATS)
    image = ImageOps.exif_transpose(image) if settings['exif_orientation'] else image
    if image.mode[0] in 'IF' and np.asarray(image).max() > 255:
        print(f'note: {show(path)}: values above 255 become white', file=sys.stderr)
    size, (width, height) = settings['image_size'], image.size
    shorter = int(size / settings['crop_pct'])
    sides = [shorter if side == min(width, height) else int(shorter * side / min(width, height))
             for side in (width, height)]
    left, top = (round((side - size) / 2) for side in sides)
    filter = Image.Resampling[settings['interpolation'].upper()]
    image = image.convert('RGB').resize(sides, filter).crop((left, top, left + size, top + size))
    return np.ascontiguousarray(
        ((np.asarray(image, np.float32) / 255 - settings['mean']) / settings['std'])
        .transpose(2, 0, 1)[None], np.float32)


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


def main(arguments: list[str], open_engine: Callable[[], Callable]) -> int:
    """Print the five best classes of each picture; return the exit code."""
    flags = [argument for argument in arguments if argument.startswith('-')]
    if flags:
        is_asked = flags[0] in ('-h', '--help')
        print(__doc__, file=sys.stdout if is_asked else sys.stderr)
        return 0 if is_asked else 2
    settings = json.loads((FOLDER / 'preprocessing.json').read_text(encoding='utf-8'))
    try:
        run = open_engine()
    except ModuleNotFoundError as error:
        sys.exit(f'error: {error.name} is not installed; README.md says what this needs')
    names, exit_code = settings['class_names'], 0
    for path in find_pictures(arguments or [str(FOLDER / 'sample.png')]):
        try:
            images = prepare(path, settings)
        except Exception as error:          # Pillow's decoders raise a dozen kinds
            print(f'error: {show(path)}: {show(getattr(error, "strerror", None) or str(error))}',
                  file=sys.stderr)
            exit_code = 1
            continue
        logits = run(images)[0].astype(np.float64)
        shares = np.exp(logits - logits.max())
        print(show(path))
        for index in np.argsort(-logits, kind='stable')[:5]:
            print(f'{shares[index] / shares.sum():8.1%}  {show(names[index]) if names else index}')
    return exit_code


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:], open_paddle))
