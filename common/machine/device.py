"""Which device a process computes on: the CPU, or an accelerator that Paddle can use."""

import os

import paddle

from common.errors import UserError, suggest

# What Paddle calls the collective operations of a kind of device; plug-ins have "xccl".
BACKENDS = {'cpu': 'gloo', 'gpu': 'nccl', 'xpu': 'bkcl'}


def count_gpus() -> int:
    """Return the number of GPUs that Paddle can use; 0 under a CPU build."""
    if not paddle.device.is_compiled_with_cuda():
        return 0
    return paddle.device.cuda.device_count()


def count_accelerators() -> dict[str, int]:
    """Return {kind: number of devices} of the accelerators that Paddle can use, GPUs first.

    Kinds: "gpu", "xpu", and the types of Paddle's plug-ins, such as "npu".
    """
    counts = {'gpu': count_gpus()}
    if paddle.device.is_compiled_with_xpu():
        counts['xpu'] = paddle.device.xpu.device_count()
    for name in paddle.device.get_available_custom_device() or ():
        kind = name.partition(':')[0]
        counts[kind] = counts.get(kind, 0) + 1
    return {kind: count for kind, count in counts.items() if count}


def get_backend(device: str) -> str:
    """Return the backend of collective operations between processes on such devices."""
    return BACKENDS.get(device.partition(':')[0], 'xccl')


def get_own_index(kind: str) -> int:
    """Return the number of the device that Paddle's launchers gave this process; 0: none did."""
    return int(os.environ.get(f'FLAGS_selected_{kind}s', '0').split(',')[0])


def choose_device(wanted: str) -> str:
    """Return "cpu" or "KIND:N" for a wanted "auto", "cpu", "KIND" or "KIND:N".

    KIND: gpu, xpu, or a plug-in's type. Where no number is named it is the one that the
    launcher gave this process. Raises UserError for a device that is not there: a GPU
    build of Paddle would end the process.
    """
    kind, _, number = wanted.partition(':')
    counts = count_accelerators()
    if kind == 'auto' and not number:
        kind = next(iter(counts), 'cpu')
    known = {'auto', 'cpu', 'gpu', 'xpu', 'npu', *counts}
    if kind not in known or number and (kind in ('auto', 'cpu') or not number.isdecimal()):
        raise UserError(f'-device must be auto, cpu, gpu, gpu:N or another accelerator that Paddle '
                        f'lists, not {wanted!r}.{suggest(kind, known)}')
    if kind == 'cpu':
        return 'cpu'
    index = int(number) if number else get_own_index(kind)
    count = counts.get(kind, 0)
    if index >= count:
        build = 'a GPU build of Paddle that fits the driver' if kind == 'gpu' else \
            f"Paddle's package for {kind}"
        raise UserError(f'-device {wanted}: Paddle sees {count} {kind.upper()}{"s" * (count != 1)}.'
                        f' Use -device cpu, or install {build}.')
    return f'{kind}:{index}'


def allow_tf32(allowed: bool, device: str) -> str:
    """Let float32 products and convolutions of a GPU round their factors to TF32, or not.

    Returns a line for the log. Allowed is Paddle's default, which NVIDIA_TF32_OVERRIDE=0 changes
    too; only GPUs of compute capability 8.0 and newer have TF32.
    """
    if not device.startswith('gpu'):
        return f'TF32: {device} has none'
    if not allowed:
        switch_tf32(False)
    return 'TF32: allowed in float32 products' if allowed else 'TF32: off, float32 is exact'


def switch_tf32(allowed: bool) -> None:
    """Switch TF32 on or off in cuBLAS and cuDNN, for this process."""
    paddle.base.core.set_cublas_switch(allowed)
    paddle.base.core.set_cudnn_switch(allowed)


def describe_device(wanted: str, device: str) -> str:
    """Return one line for the log, with the reason where an accelerator was looked for in vain."""
    if device.startswith('gpu'):
        return f'Device: {device} ({paddle.device.cuda.get_device_name(int(device[4:]))})'
    if device != 'cpu' or wanted == 'cpu':
        return f'Device: {device}'
    build = 'GPU' if paddle.device.is_compiled_with_cuda() else 'CPU'
    return f'Device: cpu (no GPU found; this is the {build} build of Paddle)'
