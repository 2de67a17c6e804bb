"""Engines that run an exported model on the CPU: Paddle's own, oneDNN, OpenVINO, ONNX Runtime.

A folder may hold the model in several forms and precisions; formats.json says which.

Each is tried in a process of its own first, where a crash of native code can be told
from an answer: it must give the logits that the export recorded. "auto" takes the
fastest of those that do, on this machine, and remembers which. What the files hold
is checked before that, see common/deploy/program.py.
"""

import importlib.util
import json
import logging
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from common.deploy.formats import (
    CHECK_FILE,
    FORMATS_FILE,
    MODEL_NAME,
    PRECISIONS,
    Formats,
    find_onnx,
    find_openvino,
    read_formats,
)
from common.deploy.openvino_ir import check_openvino
from common.deploy.program import RECORD_FILE, check_onnx, check_paddle, check_record
from common.errors import RunError, UserError
from common.files import open_regular
from common.machine.environment import count_cores, read_cpu, tune_cpu
from common.weights.containers import read_npz
from common.weights.safe_pickle import PickleError

ENGINES = ('plain', 'onednn', 'openvino', 'onnxruntime')

NUMBERS = {'.json': '.pdiparams', '.pdmodel': '.pdiparams', '.xml': '.bin'}
CHECK_IMAGES = 4
MAX_CHECK = 16 << 20                # bytes of CHECK_FILE: a million classes
MAX_SIDE = 10_000                   # pixels
# Of max |logit|; int8 against the int8 model where it was made, with other instructions.
TOLERANCE = {'float32': 1e-4, 'bfloat16': 0.1, 'int8': 0.2}
TRIAL_TIMEOUT = 600                 # seconds
TRIAL_BATCH = 8
CHOICES_FILE = 'engines.json'       # what "auto" has found, beside the model

Run = Callable[[np.ndarray], np.ndarray]            # images -> logits

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


logger = logging.getLogger(__name__)


class Engine:
    """Calls like a model: images float32 [B, 3, S, S] -> logits float32 [B, classes]."""

    def __init__(self, name: str, precision: str, run: Run, num_classes: int,
                 is_recorded: bool = True, formats: Formats | None = None) -> None:
        self.is_recorded = is_recorded
        self.formats = formats or Formats()
        self.name = name
        self.precision = precision
        self.num_classes = num_classes
        self._run = run

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return self._run(np.ascontiguousarray(images, dtype=np.float32))

    def describe(self) -> str:
        """Return a line for the log, with what int8 cost; another for an older version's folder."""
        line = f'Engine: {self.name}, {self.precision}, {count_cores()} threads'
        if self.precision == 'int8':
            cost = self.formats.openvino_cost if self.name == 'openvino' else self.formats.onnx_cost
            line = f'{line}\nint8: {cost}'
        return line if self.is_recorded else (
            f'{line}\nThe exported model has no {RECORD_FILE}: an older version made it, and files '
            'that were mixed up would not be noticed. export_model.py makes it again.')


class Trial(NamedTuple):
    """How an engine did: images a second (None: not measured), and what is wrong with it, or ''."""

    images_per_second: float | None
    problem: str


def load_engine(folder: str, engine: str = 'auto', precision: str = '') -> Engine:
    """Return the Engine that runs the exported model in a folder.

    engine: one of ENGINES, or "auto", the fastest here. precision: of the arithmetic, one of
    PRECISIONS, '' for the folder's own; bfloat16 needs a processor that has it, int8 a folder
    that was exported so. Raises UserError for an engine that the folder, this Paddle or this
    machine has not, RunError for one that crashes or computes other logits than the model that
    was exported.
    """
    if engine != 'auto' and engine not in ENGINES:
        raise UserError(f'-engine must be auto or one of {", ".join(ENGINES)}, not {engine!r}.')
    if precision and precision not in PRECISIONS:
        raise UserError(f'-precision must be one of {", ".join(PRECISIONS)}, not {precision!r}.')
    _, image_size = read_check(folder)
    is_recorded = check_folder(folder)
    precision = precision or choose_precision(folder, engine)
    if engine == 'auto':
        engine = choose_engine(folder, precision)
    else:
        problem = find_obstacle(folder, engine, precision)
        if problem:
            raise UserError(f'-engine={engine}: {problem}')
        trial = try_engine(folder, engine, precision, batch_size=0)
        if trial.problem:
            raise RunError(f'The engine {engine} cannot be used: {trial.problem}')
    expected = read_reference(folder, engine, precision)
    run = OPENERS[engine](folder, precision)
    # Once more, here: a remembered choice was not tried, and nothing says who wrote it down.
    problem = compare_logits(run(make_check_images(image_size)), expected, TOLERANCE[precision])
    if problem:
        raise RunError(f'The engine {engine} cannot be used: {problem}')
    return Engine(engine, precision, run, expected.shape[1], is_recorded, read_formats(folder))


def choose_precision(folder: str, engine: str) -> str:
    """Return the precision that the folder is for, or another that it has, saying why."""
    wanted = read_formats(folder).precision
    obstacles = [find_obstacle(folder, name, wanted)
                 for name in (ENGINES if engine == 'auto' else [engine])]
    others = [precision for precision in PRECISIONS if precision != wanted and any(
        not find_obstacle(folder, name, precision)
        for name in (ENGINES if engine == 'auto' else [engine]))]
    if '' in obstacles or not others:
        return wanted
    logger.info('%s is for %s; %s takes its place: %s', folder, wanted, others[0],
                next((text for text in obstacles if 'not installed' in text), obstacles[0]))
    return others[0]


def check_folder(folder: str) -> bool:
    """Check the programs in a folder, which a stranger may have made, and the record of hashes.

    Returns whether there is a record; older versions wrote none. Raises UserError. Nothing is
    run.
    """
    programs = [path for ending in ('.json', '.pdmodel', '.onnx', '.xml')
                if os.path.exists(path := _path(folder, ending))]
    used = {*programs, os.path.join(folder, CHECK_FILE)}
    for path in programs:
        stem, ending = os.path.splitext(path)
        used |= {f'{stem}{NUMBERS[ending]}'} if ending in NUMBERS else set()
    if os.path.exists(path := os.path.join(folder, FORMATS_FILE)):
        used.add(path)
    is_recorded = check_record(folder, sorted(used))
    for path in programs:
        if path.endswith('.onnx'):
            check_onnx(path)
        elif path.endswith('.xml'):
            check_openvino(path)
        else:
            check_paddle(path, _path(folder, '.pdiparams'))
    return is_recorded


def choose_engine(folder: str, precision: str) -> str:
    """Return the name of the fastest engine that computes the right logits on this machine."""
    path = os.path.join(folder, CHOICES_FILE)
    key = f'{describe_machine()}, {precision}'
    choices = _read_choices(path)
    if choices.get(key) in list_engines(folder, precision):
        return choices[key]
    trials = {name: try_engine(folder, name, precision)
              for name in list_engines(folder, precision)}
    good = {name: trial.images_per_second for name, trial in trials.items() if not trial.problem}
    if not good:
        tried = '\n'.join(f'  {name}: {trial.problem}' for name, trial in trials.items())
        raise RunError(f'No engine can run {folder} in {precision} here.\n{tried}'.rstrip())
    choices[key] = max(good, key=good.get)
    try:
        with open(path, 'w', encoding='utf-8') as file:
            json.dump(choices, file, indent=1)
    except OSError:
        pass                                # a folder that is read-only is measured each time
    return choices[key]


def list_engines(folder: str, precision: str) -> list[str]:
    """Return the names of the engines that could run the folder's model here."""
    return [name for name in ENGINES if not find_obstacle(folder, name, precision)]


def find_obstacle(folder: str, engine: str, precision: str) -> str:
    """Return why an engine cannot run the folder's model, '' if nothing is in the way."""
    formats = read_formats(folder)
    if precision == 'bfloat16' and not _has_bfloat16(engine, folder, formats):
        return 'bfloat16 is computed by -engine=onednn, or -engine=openvino in a folder with ' \
               f'{MODEL_NAME}.xml.'
    if precision == 'bfloat16' and 'avx512bw' not in read_cpu()[1]:
        return 'this processor has no AVX-512, which bfloat16 needs.'
    if engine == 'onnxruntime':
        return _find_onnx_obstacle(folder, formats, precision)
    if engine == 'openvino' and os.path.isfile(find_openvino(folder)) \
            and (formats.openvino == 'int8') == (precision == 'int8'):
        return '' if is_installed('openvino') else \
            'OpenVINO is not installed: pip install openvino'
    if precision == 'int8':
        return f'{folder} has no int8 model for it; export one with -precision=int8.'
    if find_program(folder) is None:
        return f'{folder} has no Paddle model that this Paddle can read; it was exported by a ' \
               'newer one, or for other engines only.'
    if engine == 'openvino':
        tune_cpu()
        from paddle import inference
        if not hasattr(inference.Config, 'enable_openvino_engine'):
            return 'this Paddle has no OpenVINO engine (3.x has).'
    return ''


def _find_onnx_obstacle(folder: str, formats: Formats, precision: str) -> str:
    if not os.path.isfile(find_onnx(folder)):
        return f'{folder} has no {MODEL_NAME}.onnx; export it with -formats=paddle,onnx.'
    if (formats.onnx == 'int8') != (precision == 'int8'):
        return f'{MODEL_NAME}.onnx is in {formats.onnx}.'
    return '' if is_installed('onnxruntime') else \
        'ONNX Runtime is not installed: pip install onnxruntime'


def _has_bfloat16(engine: str, folder: str, formats: Formats) -> bool:
    return engine == 'onednn' or engine == 'openvino' and formats.openvino != 'int8' \
        and os.path.isfile(find_openvino(folder))


def try_engine(folder: str, engine: str, precision: str, batch_size: int = TRIAL_BATCH) -> Trial:
    """Run an engine in a process of its own; return the Trial. batch_size: see run_trial."""
    with tempfile.TemporaryDirectory() as scratch:
        result = os.path.join(scratch, 'result.json')
        command = [sys.executable, '-m', 'common.deploy.engine', os.path.abspath(folder), engine,
                   precision, str(batch_size), result]
        environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(
            filter(None, [ROOT, os.environ.get('PYTHONPATH')]))}
        try:
            ended = subprocess.run(command, env=environment, capture_output=True, text=True,
                                   errors='replace', timeout=TRIAL_TIMEOUT, cwd=scratch)
        except subprocess.TimeoutExpired:
            return Trial(None, f'it took more than {TRIAL_TIMEOUT} seconds.')
        try:
            with open(result, encoding='utf-8') as file:
                return Trial(**json.load(file))
        except (OSError, ValueError):
            lines = ended.stderr.strip().splitlines()
            how = f'signal {-ended.returncode}' if ended.returncode < 0 else \
                f'exit code {ended.returncode}'
            return Trial(None, f'it crashed ({how}). {lines[-1][:300] if lines else ""}'.rstrip())


def run_trial(folder: str, engine: str, precision: str, batch_size: int) -> Trial:
    """Run an engine in this process; return the Trial. This is what try_engine's process does.

    batch_size: of the images whose speed is measured; 0: it is not.
    """
    images = make_check_images(read_check(folder)[1])
    expected = read_reference(folder, engine, precision)
    run = OPENERS[engine](folder, precision)
    problem = compare_logits(run(images), expected, TOLERANCE[precision])
    if problem or not batch_size:
        return Trial(None, problem)
    batch = np.resize(images, (batch_size, *images.shape[1:]))
    run(batch)                              # the first run of a shape prepares buffers
    times = []
    while len(times) < 3 or sum(times) < 0.5 and len(times) < 50:
        started = time.perf_counter()
        run(batch)
        times.append(time.perf_counter() - started)
    return Trial(batch_size / min(times), '')


def compare_logits(logits: np.ndarray, expected: np.ndarray, tolerance: float) -> str:
    """Return what is wrong with logits, '' if they are within tolerance * max |logit|."""
    if logits.shape != expected.shape:
        return f'it gave the shape {list(logits.shape)}, not {list(expected.shape)}.'
    error = np.abs(logits - expected).max() / np.abs(expected).max()
    if not error <= tolerance:              # a NaN is not
        return f'its logits differ by {error:.1e} of the largest; at most {tolerance:.0e} is right.'
    return ''


def make_check_images(image_size: int) -> np.ndarray:
    """Return the images whose logits the export records: float32 [4, 3, S, S], normal."""
    generator = np.random.Generator(np.random.PCG64(0))
    return generator.standard_normal((CHECK_IMAGES, 3, image_size, image_size), dtype=np.float32)


def write_check(folder: str, logits: np.ndarray, image_size: int,
                **quantised: np.ndarray) -> None:
    """Record the dynamic model's logits for make_check_images.

    quantised: {form: logits} of the int8 models, which are models of their own.
    """
    arrays: dict[str, Any] = {f'{form}_int8': values for form, values in quantised.items()}
    np.savez(os.path.join(folder, CHECK_FILE), logits=logits, image_size=image_size, **arrays)


def read_check(folder: str) -> tuple[np.ndarray, int]:
    """Return (logits [4, classes], image_size) of the model, as write_check recorded them."""
    arrays = _read_check_arrays(folder)
    return arrays['logits'], int(arrays['image_size'])


def read_reference(folder: str, engine: str, precision: str) -> np.ndarray:
    """Return the logits [4, classes] that an engine is to give for make_check_images."""
    form = {'openvino': 'openvino', 'onnxruntime': 'onnx'}.get(engine)
    return _read_check_arrays(folder)[f'{form}_int8' if precision == 'int8' else 'logits']


def _read_check_arrays(folder):
    """Return {name: array} of check.npz: logits, image_size, and the logits of int8 models."""
    path = os.path.join(folder, CHECK_FILE)
    try:
        with open_regular(path) as file:
            if os.fstat(file.fileno()).st_size > MAX_CHECK:
                raise ValueError('it is too large')
            arrays, _ = read_npz(file)
        for name, logits in arrays.items():
            if name != 'image_size' and (
                    logits.ndim != 2 or logits.shape != arrays['logits'].shape
                    or len(logits) != CHECK_IMAGES or logits.dtype != np.float32
                    or not logits.any() or not np.isfinite(logits).all()):
                raise ValueError('its logits are none')
        image_size = arrays['image_size']
        if image_size.shape or image_size.dtype.kind != 'i' or not 0 < image_size <= MAX_SIDE:
            raise ValueError('its image size is none')
        if read_formats(folder).openvino == 'int8' and 'openvino_int8' not in arrays \
                or read_formats(folder).onnx == 'int8' and 'onnx_int8' not in arrays:
            raise ValueError('it has no logits of the int8 model')
        return arrays
    except FileNotFoundError:
        raise UserError(f'{folder} is no exported model: it has no {CHECK_FILE}. '
                        'Make one with export_model.py.') from None
    except OSError as error:
        raise UserError(f'Cannot read {path}: {error.strerror or error}.') from None
    except (PickleError, ValueError, KeyError) as error:
        raise UserError(f'{path} is damaged ({error}); export the model again.') from None


def find_program(folder: str) -> str | None:
    """Return the path of the Paddle program that the installed Paddle reads, None if none is."""
    tune_cpu()
    import paddle
    endings = ('.pdmodel',) if paddle.__version__.startswith('2.') else ('.json', '.pdmodel')
    return next((_path(folder, ending) for ending in endings
                 if os.path.isfile(_path(folder, ending))), None)


def open_paddle(folder: str, precision: str, prepare: Callable[[Any, str], None]) -> Run:
    """Return run(images) -> logits of paddle.inference. prepare: given the Config."""
    tune_cpu()
    from paddle import inference
    program, parameters = find_program(folder), _path(folder, '.pdiparams')
    check_paddle(program, parameters)
    config = inference.Config(program, parameters)
    config.disable_gpu()
    config.disable_glog_info()
    config.set_cpu_math_library_num_threads(count_cores())
    # With oneDNN, which FLAGS_use_onednn brings in too, Paddle 3.3.1 overwrites a tensor that is
    # still read (a scaled one used twice, as in T2T-ViT's performer): wrong logits, silently.
    config.delete_pass('inplace_pass')
    prepare(config, precision)
    try:
        predictor = inference.create_predictor(config)
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(f'{folder}: Paddle cannot load the model ({_first_line(error)}). Its files '
                        'are damaged or of another version of Paddle: export it again with '
                        'export_model.py.') from None
    source = predictor.get_input_handle(predictor.get_input_names()[0])
    target = predictor.get_output_handle(predictor.get_output_names()[0])

    def run(images):
        source.copy_from_cpu(images)
        predictor.run()
        return target.copy_to_cpu()
    return run


def _first_line(error):
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[-1][:200]


def use_plain(config: Any, precision: str) -> None:
    config.disable_mkldnn()


def use_onednn(config: Any, precision: str) -> None:
    config.enable_mkldnn()
    config.set_mkldnn_cache_capacity(16)    # batch sizes that it is prepared for
    if precision == 'bfloat16':
        config.enable_mkldnn_bfloat16()


def use_openvino(config: Any, precision: str) -> None:
    from paddle import inference
    use_onednn(config, precision)           # for what OpenVINO leaves to Paddle
    config.enable_openvino_engine(inference.PrecisionType.Float32)


def open_onnx(folder: str, precision: str) -> Run:
    """Return run(images) -> logits of ONNX Runtime."""
    import onnxruntime
    check_onnx(find_onnx(folder))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = count_cores()
    options.log_severity_level = 3          # errors
    session = onnxruntime.InferenceSession(
        find_onnx(folder), options, providers=['CPUExecutionProvider'])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


def open_openvino(folder: str, precision: str) -> Run:
    """Return run(images) -> logits of OpenVINO: its own package's, or the one in Paddle."""
    if precision != 'int8' and not (
            os.path.isfile(find_openvino(folder)) and is_installed('openvino')
            and read_formats(folder).openvino != 'int8'):
        return open_paddle(folder, precision, use_openvino)
    import openvino
    check_openvino(find_openvino(folder))
    has_bfloat16 = 'avx512_bf16' in read_cpu()[1]
    rest = 'bf16' if precision == 'bfloat16' or precision == 'int8' and has_bfloat16 else 'f32'
    compiled = openvino.Core().compile_model(find_openvino(folder), 'CPU', {
        'INFERENCE_NUM_THREADS': count_cores(), 'PERFORMANCE_HINT': 'LATENCY',
        'INFERENCE_PRECISION_HINT': rest})
    request = compiled.create_infer_request()
    return lambda images: np.array(request.infer([images])[0])


OPENERS: dict[str, Callable[[str, str], Run]] = {
    'plain': lambda folder, precision: open_paddle(folder, precision, use_plain),
    'onednn': lambda folder, precision: open_paddle(folder, precision, use_onednn),
    'openvino': open_openvino,
    'onnxruntime': open_onnx,
}


def is_installed(module: str) -> bool:
    """Tell whether a module can be imported, without importing it."""
    return importlib.util.find_spec(module) is not None


def describe_machine() -> str:
    """Return what the choice of an engine depends on beside the model, as text."""
    tune_cpu()
    import paddle
    return f'{read_cpu_name()}, {count_cores()} cores, Paddle {paddle.__version__}'


def read_cpu_name() -> str:
    """Return the processor's name."""
    try:
        with open('/proc/cpuinfo', encoding='utf-8', errors='replace') as file:
            names = [line.partition(':')[2].strip() for line in file if line.startswith('model n')]
        return names[-1] if names else platform.processor()
    except OSError:
        return platform.processor()


def _read_choices(path):
    try:
        with open_regular(path) as file:
            choices = json.loads(file.read(1 << 20))
    except (OSError, ValueError, RecursionError):
        return {}
    return choices if isinstance(choices, dict) else {}


def _path(folder, ending):
    return os.path.join(folder, MODEL_NAME + ending)


def main() -> None:
    folder, engine, precision, batch_size, result = sys.argv[1:]
    try:
        trial = run_trial(folder, engine, precision, int(batch_size))
    except Exception as error:              # of many kinds, and native code's among them
        lines = [line for line in str(error).splitlines() if line.strip()]
        trial = Trial(None, f'{type(error).__name__}: {lines[0][:300] if lines else ""}')
    with open(result, 'w', encoding='utf-8') as file:
        json.dump(trial._asdict(), file)


if __name__ == '__main__':
    main()
