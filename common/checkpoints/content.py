"""What a checkpoint holds: everything that shapes the rest of a run.

In the file the layout is PaddleViT's (`model`, `optimizer`, `epoch`, `lr_scheduler`,
`amp_grad_scaler`, `model_ema`, tensors as paddle.save stores them), plus the entries of
`PROGRESS` and `parameter_names`. In memory everything goes by structured names:
`capture` and `read_checkpoint` convert at the border.

Random generators are not stored: seeds are derived from (seed, rank, update).
"""

from typing import Any

import numpy as np
import paddle

from common.checkpoints.file import NamedArray
from common.checkpoints.optimizer_state import (
    MASTER_WEIGHT,
    assign_array,
    group_by_parameter,
    name_parameters,
    read_optimizer,
    write_optimizer,
)
from common.checkpoints.record import (
    check_record,
    check_tensors,
    is_flag,
    is_mapping,
    is_number,
    is_text,
)
from common.errors import UserError
from common.weights import safe_pickle
from common.weights.trailer import CheckpointError, has_trailer, verify_checkpoint

FORMAT_VERSION = 1

# What Saver.save passes to `capture`, with the value for what a checkpoint lacks.
PROGRESS = {
    'epoch': 0,             # epochs completed
    'update': None,         # optimizer updates done
    'updates_per_epoch': None,
    'micro_batch': 0,       # micro-batches consumed in the unfinished epoch
    'loss': None,           # training loss shown in the file name
    'learning_rate': None,  # of the last update
    'meter': None,          # running sums of the losses, see meter.Meter
    'best': None,           # {'value': metric, 'epoch': epoch} of the best validation
    'awaits_validation': False,     # the epoch's has not ended yet
    'has_ended': False,     # the run, by its plan or early
    'metrics_size': None,   # bytes of metrics.jsonl that were on record
    'model_name': None,     # MODEL.NAME
    'seed': None,
    'world_size': None,     # processes
    'config': None,         # yaml text of the resolved config
    'class_names': None,
    'data': None,           # {'training': {'images': ..., 'checksum': ..., 'sizes': ...}, ...}
    'numerics': None,       # {'gelu': ..., 'layer_norm_eps': ..., ...} of the model
    'preprocessing': None,  # {'image_size': ..., 'crop_pct': ..., 'mean': ..., ...}
}

# A decay that warms up over updates has long reached its limit after so many.
MANY_UPDATES = 1 << 30


def capture(state: Any, progress: dict, buffers: dict | None = None) -> dict:
    """Return the file's content as a copy on the host, which later updates do not change.

    state: has .model, .optimizer, .ema (ModelEma or None) and .scaler (GradScaler or None).
    progress: {key of PROGRESS: plain value}; other keys are refused. buffers: a dictionary
    that keeps the copy's memory for the next capture, which then overwrites this one.
    Half-precision tensors are widened to float32, which loses nothing and which every reader
    understands.
    """
    unknown = set(progress) - set(PROGRESS)
    assert not unknown, f'not in PROGRESS: {unknown}'
    model = unwrap(state.model)
    names = name_parameters(model)
    schedule = {'last_epoch': progress.get('epoch', 0), 'last_lr': progress.get('learning_rate')}
    optimizer: dict[str, Any] = {}
    master_weights = {}

    def copy(part, name, tensor):
        return _copy_to_host(tensor, buffers, (part, name))

    for name, accumulators in read_optimizer(state.optimizer, names).items():
        generated = names[name]
        for accumulator, tensor in accumulators.items():
            if accumulator == MASTER_WEIGHT:
                key = f'{generated}_fp32_master_0'
                master_weights[generated] = NamedArray(key, copy('optimizer', key, tensor))
            else:
                key = f'{generated}_{accumulator}_0'
                optimizer[key] = NamedArray(key, copy('optimizer', key, tensor))
    if master_weights:
        optimizer['master_weights'] = master_weights
    optimizer['LR_Scheduler'] = schedule

    payload = {
        'model': {name: NamedArray(names.get(name, name), copy('model', name, tensor))
                  for name, tensor in model.state_dict().items()},
        'optimizer': optimizer,
        'lr_scheduler': dict(schedule),
        'amp_grad_scaler': _to_plain(state.scaler.state_dict()) if state.scaler else {},
        'parameter_names': names,
        'format_version': FORMAT_VERSION,
        'paddle_version': paddle.__version__,
    }
    if state.ema is not None:
        payload['model_ema'] = {name: NamedArray(names.get(name, name), copy('ema', name, tensor))
                                for name, tensor in state.ema.state_dict().items()}
        payload['ema_updates'] = state.ema.updates
    for key, default in PROGRESS.items():
        payload[key] = _to_plain(progress.get(key, default))
    return payload


def read_checkpoint(path: str) -> dict:
    """Return a verified training checkpoint, ours or PaddleViT's, as a dictionary.

    Keys: those of PROGRESS; 'path'; 'format_version' and 'paddle_version' (None:
    PaddleViT's); 'model' {name: ndarray}; 'optimizer' {name: {accumulator: ndarray}} or
    None; 'optimizer_problem' (why it is None); 'model_ema' {name: ndarray} or None;
    'ema_updates'; 'amp_grad_scaler' {} or a GradScaler's state. Nothing in the file is
    executed. Raises UserError for what cannot be read, is damaged, or is no checkpoint.
    """
    try:
        is_ours = has_trailer(path)
        if is_ours:
            verify_checkpoint(path)
    except (CheckpointError, OSError) as error:
        raise UserError(f'{path} cannot be resumed from: {describe(error)}.') from None
    content = safe_pickle.load(path, keep_names=True)
    return read_content(content, path, is_ours)


def read_content(content: Any, path: str, is_ours: bool = True) -> dict:
    """Return what `read_checkpoint` does, from what the file holds. Raises UserError.

    is_ours: whether the file has our trailer.
    """
    if not isinstance(content, dict) or not isinstance(content.get('model'), dict) \
            or 'epoch' not in content:
        raise UserError(
            f'{path} is not a training checkpoint: it lacks "model" or "epoch". '
            'To start from its weights, use -pretrained.')
    if not is_ours and 'format_version' in content:
        raise UserError(f'{path} cannot be resumed from: its end, with the checksum, is missing.')
    version = content.get('format_version')
    if is_ours and (type(version) is not int or version != FORMAT_VERSION):
        raise UserError(
            f'{path} has format {str(version)[:40]}; this version reads {FORMAT_VERSION}.')

    checkpoint = {key: content.get(key, default) for key, default in PROGRESS.items()}
    checkpoint['path'] = path
    checkpoint['format_version'] = content.get('format_version')
    checkpoint['paddle_version'] = content.get('paddle_version')
    checkpoint['model'] = _without_names(content['model'])
    checkpoint['model_ema'] = None
    if isinstance(content.get('model_ema'), dict):
        checkpoint['model_ema'] = _without_names(content['model_ema'])
    checkpoint['ema_updates'] = content.get('ema_updates', MANY_UPDATES)
    scaler = content.get('amp_grad_scaler')
    checkpoint['amp_grad_scaler'] = _without_names(scaler) if isinstance(scaler, dict) else \
        {} if scaler is None else scaler
    check_record(checkpoint, path)
    checkpoint['optimizer'], checkpoint['optimizer_problem'] = _read_optimizer_entry(content, path)
    return checkpoint


def restore(state: Any, checkpoint: dict, world_size: int = 1) -> list[str]:
    """Set weights, optimizer, EMA and scaler of `state` (see `capture`) from read_checkpoint.

    Position, best metric and learning rate are the caller's to take from the dictionary.
    Returns lines for the log: what was restored, and what could not be. Raises UserError
    if the checkpoint belongs to another model or optimizer.
    """
    model = unwrap(state.model)
    weights = checkpoint['model']
    check_tensors(weights, 'model', checkpoint['path'], finite=True)
    check_tensors(checkpoint['model_ema'] or {}, 'model_ema', checkpoint['path'], finite=True)
    _check_model(model, checkpoint)
    lines = [_describe_origin(checkpoint)]
    optimizer_state = dict(checkpoint['optimizer'] or {})
    frozen = [name for name, parameter in model.named_parameters()
              if parameter.stop_gradient and optimizer_state.pop(name, None) is not None]
    if frozen:
        lines.append(f'The optimizer state of {len(frozen)} parameters, now frozen, is not used.')
    write_optimizer(state.optimizer, model, optimizer_state, weights)
    for name, buffer in model.named_buffers():
        if name in weights:
            assign_array(buffer, weights[name])
    if checkpoint['optimizer'] is None:
        lines.append(f'Optimizer state NOT restored: {checkpoint["optimizer_problem"]}. '
                     'It starts anew.')
    if state.ema is not None:
        if checkpoint['model_ema'] is None:
            state.ema.set_state_dict(weights, updates=0)
            lines.append('The checkpoint has no averaged weights (EMA): '
                         'the average starts from the weights.')
        else:
            state.ema.set_state_dict(checkpoint['model_ema'], checkpoint['ema_updates'])
    elif checkpoint['model_ema'] is not None:
        lines.append('The averaged weights (EMA) in the checkpoint are not used: '
                     'TRAIN.MODEL_EMA is off.')
    lines += _restore_scaler(state.scaler, checkpoint['amp_grad_scaler'], checkpoint['path'])
    if checkpoint['world_size'] not in (None, world_size):
        lines.append(f'Saved by {checkpoint["world_size"]} processes, resumed by {world_size}: '
                     'the run continues, but not bit for bit as it would have.')
    if checkpoint['paddle_version'] not in (None, paddle.__version__):
        lines.append(f'Saved with Paddle {checkpoint["paddle_version"]}, resumed with '
                     f'{paddle.__version__}: results may differ in the last bits.')
    return lines


def unwrap(model: paddle.nn.Layer) -> paddle.nn.Layer:
    """Return the model inside paddle.DataParallel, or the model itself."""
    return model._layers if isinstance(model, paddle.DataParallel) else model


def describe(error: Exception) -> str:
    """Return the reason in an OSError or CheckpointError as text."""
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)


def _check_model(model, checkpoint):
    weights = checkpoint['model']
    expected = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: list(getattr(array, 'shape', ())) for name, array in weights.items()}
    if found == expected:
        return
    missing = sorted(set(expected) - set(found))
    unexpected = sorted(set(found) - set(expected))
    if missing or unexpected:
        problem = (f'{len(missing)} tensors missing, {len(unexpected)} unexpected '
                   f'(such as {(missing + unexpected)[0]})')
    else:
        name = next(name for name in expected if found[name] != expected[name])
        problem = f'{name} has shape {found[name]}, expected {expected[name]}'
    saved_by = f' ({checkpoint["model_name"]})' if checkpoint['model_name'] else ''
    raise UserError(
        f'{checkpoint["path"]} is of another model{saved_by}: {problem}.\n'
        'Use the config it was trained with, or -pretrained to start from its weights.')


def _restore_scaler(scaler, saved, path):
    is_enabled = scaler is not None and bool(scaler.state_dict())
    if is_enabled and saved:
        if set(saved) != set(scaler.state_dict()) or not all(
                is_flag(value) or is_number(value) or isinstance(value, np.ndarray)
                and value.size == 1 and value.dtype.kind == 'f' for value in saved.values()):
            raise UserError(f'{path} cannot be resumed from: its amp_grad_scaler is no loss scale.')
        scaler.load_state_dict(saved)
        return []
    if is_enabled:
        return ['The checkpoint has no loss scale: it starts anew.']
    if saved:
        return ['The loss scale in the checkpoint is not used: there is no scaler in this run.']
    return []


def _describe_origin(checkpoint):
    if checkpoint['format_version'] is None:
        return (f'Restored {checkpoint["path"]}, a checkpoint of PaddleViT: epoch '
                f'{checkpoint["epoch"]}. It has no position inside the epoch, best metric or '
                'seed, so the order of the images is not the one it would have had.')
    return (f'Restored {checkpoint["path"]}: epoch {checkpoint["epoch"]}, '
            f'update {checkpoint["update"]}.')


def _read_optimizer_entry(content, path):
    """Return (state by structured names or None, why None). Raises UserError."""
    optimizer = content.get('optimizer')
    if not isinstance(optimizer, dict):
        return None, 'the file has none'
    names = content.get('parameter_names')
    if names is None:                       # PaddleViT's: a tensor's own name lies beside it
        names = {name: value[0] for name, value in content['model'].items() if _is_pair(value)}
    for entries in (optimizer, names, optimizer.get('master_weights', {})):
        if not is_mapping(entries):
            raise UserError(f'{path} cannot be resumed from: its optimizer is no tensors by name.')
    if not all(map(is_text, names.values())):
        raise UserError(f'{path} cannot be resumed from: its parameter_names are no names.')
    optimizer = {key: value for key, value in optimizer.items() if key != 'LR_Scheduler'}
    if optimizer and not names:
        return None, 'the file does not say which entry belongs to which parameter'
    try:
        state = group_by_parameter(optimizer, names)
    except UserError as error:
        return None, str(error).rstrip('.')
    state = {name: _without_names(accumulators) for name, accumulators in state.items()}
    for name, accumulators in state.items():
        check_tensors(accumulators, f'optimizer, {name}', path)
    return state, None


def _without_names(entries):
    return {name: value[1] if _is_pair(value) else value for name, value in entries.items()}


def _is_pair(value):
    return (isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str)
            and isinstance(value[1], np.ndarray))


def _copy_to_host(tensor, buffers, key):
    if tensor.dtype in (paddle.bfloat16, paddle.float16):
        tensor = tensor.cast('float32')
    # Paddle 2's DLPack takes bool for uint8.
    if buffers is None or not tensor.place.is_cpu_place() or tensor.dtype == paddle.bool:
        return tensor.numpy()
    view = np.from_dlpack(_Dlpack(tensor.detach()))
    array = buffers.get(key)
    if array is None or (array.shape, array.dtype) != (view.shape, view.dtype):
        array = buffers[key] = np.empty(view.shape, view.dtype)
    np.copyto(array, view)      # 7 times as fast as numpy(), which takes fresh memory
    return array


class _Dlpack:
    """A tensor on the CPU as numpy.from_dlpack wants it, in both versions of Paddle."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __dlpack__(self, **options):
        return paddle.utils.dlpack.to_dlpack(self.tensor)

    def __dlpack_device__(self):
        return 1, 0                         # the CPU


def _to_plain(value):
    """Copy nested values, NumPy's numbers as Python's, so that a restricted reader takes them."""
    if isinstance(value, dict):
        return {key: _to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, paddle.Tensor):
        return value.numpy()
    assert value is None or isinstance(value, (bool, int, float, str)), type(value)
    return value
