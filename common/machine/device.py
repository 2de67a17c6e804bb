"""Which device a process computes on."""

import os

import paddle

from common.errors import UserError


def count_gpus():
    """Return the number of GPUs that Paddle can use; 0 under a CPU build."""
    if not paddle.device.is_compiled_with_cuda():
        return 0
    return paddle.device.cuda.device_count()


def get_own_gpu():
    """Return the number of the GPU that Paddle's launchers gave this process; 0 if none did."""
    selected = os.environ.get('FLAGS_selected_gpus', '0')       # noqa: SIM112 (Paddle's spelling)
    return int(selected.split(',')[0])


def choose_device(wanted, own_gpu=0):
    """Return "cpu" or "gpu:N" for a wanted "auto", "cpu", "gpu" or "gpu:N".

    own_gpu: taken where the wish names none.

    A GPU build of Paddle ends the process when it is told to use a GPU that is
    not there, so this looks first. Raises UserError for a GPU that is missing.
    """
    kind, _, number = wanted.partition(':')
    if kind not in ('auto', 'cpu', 'gpu') or number and not (kind == 'gpu' and number.isdigit()):
        raise UserError(f'-device must be auto, cpu, gpu or gpu:N, not {wanted!r}.')
    gpus = count_gpus()
    if kind == 'cpu' or kind == 'auto' and gpus == 0:
        return 'cpu'
    index = int(number) if number else own_gpu
    if index >= gpus:
        raise UserError(f'-device {wanted}: Paddle sees {gpus} GPU{"s" * (gpus != 1)}. '
                        'Use -device cpu, or install a GPU build of Paddle that fits the driver.')
    return f'gpu:{index}'


def describe_device(wanted, device):
    """Return one line for the log, with the reason where a GPU was looked for in vain."""
    if device != 'cpu':
        return f'Device: {device} ({paddle.device.cuda.get_device_name(int(device[4:]))})'
    if wanted == 'cpu':
        return 'Device: cpu'
    build = 'GPU' if paddle.device.is_compiled_with_cuda() else 'CPU'
    return f'Device: cpu (no GPU found; this is the {build} build of Paddle)'
