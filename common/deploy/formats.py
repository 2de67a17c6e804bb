"""Which forms of a model an exported folder holds, in which precision, and what int8 cost."""

import json
import os
from dataclasses import asdict, dataclass

from common.errors import UserError
from common.files import open_regular, write_json

MODEL_NAME = 'model'        # .json or .pdmodel with .pdiparams, .onnx, .xml with .bin
FORMATS = ('paddle', 'onnx', 'openvino')
PRECISIONS = ('float32', 'bfloat16', 'int8')
FORMATS_FILE = 'formats.json'
CHECK_FILE = 'check.npz'    # what the dynamic model gave for known images; every folder has it
MAX_BYTES = 1 << 16


@dataclass(frozen=True)
class Formats:
    """precision: what the folder was exported for; onnx, openvino: of these files' numbers.

    onnx_cost, openvino_cost: what int8 changed, measured when it was exported, in words; '' without
    int8. calibrated: the pictures that its ranges were taken from. kept_float: layers that stayed
    float32.
    """

    precision: str = 'float32'
    onnx: str = 'float32'
    openvino: str = 'float32'
    onnx_cost: str = ''
    openvino_cost: str = ''
    calibrated: str = ''
    kept_float: str = ''


def write_formats(formats: Formats, folder: str) -> None:
    """Write formats.json into a folder."""
    write_json(os.path.join(folder, FORMATS_FILE), asdict(formats))


def read_formats(folder: str) -> Formats:
    """Return the Formats of an exported folder; older ones have no such file, and float32 alone.

    Raises UserError naming the file if it is damaged.
    """
    path = os.path.join(folder, FORMATS_FILE)
    try:
        with open_regular(path) as file:
            formats = Formats(**json.loads(file.read(MAX_BYTES)))
        texts = asdict(formats).values()
        if not all(isinstance(text, str) and text.isprintable() for text in texts) \
                or not {formats.precision, formats.onnx, formats.openvino} <= set(PRECISIONS):
            raise ValueError('unknown values')
        return formats
    except FileNotFoundError:
        return Formats()
    except OSError as error:
        raise UserError(f'Cannot read {path}: {error.strerror or error}.') from None
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f'{path} is damaged ({str(error)[:100]}); export the model again.'
                        ) from None


def find_onnx(folder: str) -> str:
    """Return the path that the ONNX model has."""
    return os.path.join(folder, f'{MODEL_NAME}.onnx')


def find_openvino(folder: str) -> str:
    """Return the path that the OpenVINO model has; its numbers lie in the .bin file beside it."""
    return os.path.join(folder, f'{MODEL_NAME}.xml')


def is_exported(path: str | None) -> bool:
    """Whether a path is a folder that export_model.py has written."""
    return bool(path) and os.path.isfile(os.path.join(path, CHECK_FILE))
