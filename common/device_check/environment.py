"""What the device, the driver and this build of Paddle are."""

import contextlib
import os
import platform
import subprocess
from typing import Any

import paddle

from common.device_check.report import Check, CheckFailed, CheckSkipped, Context
from common.kernels import install
from common.machine.device import count_accelerators
from common.machine.environment import count_cores, measure_memory
from common.training.precision import is_supported

# Beginnings of the names of environment variables that change what a device does.
VARIABLES = ('FLAGS_', 'NCCL_', 'NVIDIA_', 'CUDA_', 'CUDNN_', 'XPU_', 'BKCL_', 'PADDLE_', 'OMP_',
             'CUSTOM_DEVICE_')


def check_build(context: Context) -> tuple[str, dict[str, Any]]:
    """Paddle, and the libraries that it was built with."""
    version = paddle.version
    figures = {'code': describe_code(), 'paddle': paddle.__version__,
               'commit': getattr(version, 'commit', ''), 'variables': {
                   name: value for name, value in sorted(os.environ.items())
                   if name.startswith(VARIABLES)},
               'python': platform.python_version(), 'system': platform.platform(),
               'cores': count_cores(), 'memory': measure_memory()}
    for name in ('cuda', 'cudnn', 'nccl', 'tensorrt', 'xpu'):
        with contextlib.suppress(Exception):        # a build of another kind lacks some
            figures[name] = str(getattr(version, name)())
    libraries = ', '.join(f'{name} {figures[name]}' for name in ('cuda', 'cudnn', 'nccl')
                          if figures.get('cuda') not in (None, 'False') and figures.get(name))
    return (f'Paddle {figures["paddle"]} ({libraries or "no CUDA"}), Python '
            f'{figures["python"]}, {figures["cores"]} cores', figures)


def describe_code() -> str:
    """Return which version of this project runs: its commit, "unknown" without Git."""
    command = ['git', 'describe', '--always', '--dirty', '--abbrev=12']
    try:
        return subprocess.run(command, cwd=os.path.dirname(__file__), capture_output=True,
                              text=True, timeout=30, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return 'unknown'


def check_driver(context: Context) -> tuple[str, dict[str, Any]]:
    """The driver, as nvidia-smi tells it."""
    if context.kind != 'gpu':
        raise CheckSkipped('only GPUs have one that is asked')
    command = ['nvidia-smi', '--query-gpu=name,driver_version,memory.total,power.limit',
               '--format=csv,noheader']
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise CheckSkipped(f'nvidia-smi does not answer ({error})') from None
    lines = [line.strip() for line in said.stdout.splitlines() if line.strip()]
    return '; '.join(lines), {'devices': lines}


def check_device(context: Context) -> tuple[str, dict[str, Any]]:
    """The device and what it can compute in; a sum on it is right."""
    total = int(paddle.arange(100, dtype='int64').sum())
    if total != 4950:
        raise CheckFailed(f'the sum of 0 to 99 is {total}')
    figures: dict[str, Any] = {'device': context.device, 'devices': count_accelerators()}
    if context.kind == 'gpu':
        found = paddle.device.cuda.get_device_properties(int(context.device[4:]))
        figures |= {'name': found.name, 'capability': f'{found.major}.{found.minor}',
                    'memory': found.total_memory, 'processors': found.multi_processor_count}
    figures |= {dtype: is_supported(dtype) for dtype in ('float16', 'bfloat16')}
    return describe_device(context, figures), figures


def describe_device(context: Context, figures: dict[str, Any]) -> str:
    """Return what check_device has found as text."""
    if context.kind == 'cpu':
        return 'cpu, which computes in float32'
    count = figures['devices'].get(context.kind, 1)
    parts = [f'{context.device} of {count}']
    if context.kind == 'gpu':
        parts += [figures['name'], f'compute capability {figures["capability"]}',
                  f'{figures["memory"] / 2 ** 30:.1f} GiB']
    return ', '.join([*parts, *(f'{dtype}: {"yes" if figures[dtype] else "no"}'
                                for dtype in ('float16', 'bfloat16'))])


def check_fused_attention(context: Context) -> tuple[str, dict[str, Any]]:
    """Whether attention without the scores in memory is taken, by the precision."""
    if context.kind == 'cpu':
        raise CheckSkipped('the CPU has kernels of its own')
    layers = {}
    for dtype in ('float16', 'bfloat16'):
        if is_supported(dtype):
            model = build_tiny(context)
            layers[dtype] = install(model, 'fused', dtype)
    return ', '.join(f'{dtype}: {count} layers' for dtype, count in layers.items()) or \
        'no half precision', layers


def check_tf32(context: Context) -> tuple[str, dict[str, Any]]:
    """Whether float32 products are rounded to TF32 by default."""
    if context.kind != 'gpu':
        raise CheckSkipped('only GPUs have it')
    override = os.environ.get('NVIDIA_TF32_OVERRIDE', 'not set')
    a = paddle.rand([256, 256])
    exact = a.astype('float64') @ a.astype('float64')
    error = float(((a @ a).astype('float64') - exact).abs().max() / exact.abs().max())
    used = error > 1e-5
    return (f'float32 products are {"rounded to TF32" if used else "exact"} by default '
            f'(error {error:.1e}, NVIDIA_TF32_OVERRIDE {override})', {'error': error})


def build_tiny(context: Context) -> paddle.nn.Layer:
    """Return the first of the directory's tiny models."""
    options = next(iter(context.project.tiny_models.values()))
    return context.project.build_model(context.project.get_config(flags=dict(options)))


def list_checks(context: Context) -> list[tuple[str, Check]]:
    """Return the checks."""
    return [('build', check_build), ('driver', check_driver), ('device', check_device),
          ('fused attention', check_fused_attention), ('TF32', check_tf32)]
