"""Logits and every gradient of small models on the device, against the same on the CPU."""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn

from common.device_check.report import Check, CheckFailed, CheckSkipped, Context
from common.kernels import install
from common.machine.device import switch_tf32
from common.training.precision import Precision, is_supported

# Largest error of a tensor, of its norm: float32, with factors rounded to TF32, half precision.
TOLERANCES = {'float32': 1e-4, 'tf32': 5e-3, 'float16': 3e-2, 'bfloat16': 3e-2}
# Twice what rounding alone makes through a convolutional stem; bfloat16 has three bits fewer.
GRADIENT_TOLERANCES = {**TOLERANCES, 'float16': 6e-2, 'bfloat16': 2e-1}
SMALL = 1e-3        # of the largest norm: a tensor below it is compared with this instead
BATCH = 8


def list_checks(context: Context) -> list[tuple[str, Check]]:
    """Return the checks: each tiny model in each precision, and fused against plain attention."""
    precisions = ['float32', 'tf32'] if context.kind == 'gpu' else ['float32']
    if context.kind != 'cpu':
        precisions += ['float16', 'bfloat16']
    checks: list[tuple[str, Check]] = []
    for name in context.project.tiny_models:
        checks += [(f'{name}, {precision}', functools.partial(
            check_model, name=name, precision=precision)) for precision in precisions]
        checks += [(f'{name}, fused against plain, {dtype}', functools.partial(
            check_fused, name=name, dtype=dtype))
            for dtype in precisions if dtype in ('float16', 'bfloat16')]
    return checks


def check_model(context: Context, name: str, precision: str) -> tuple[str, dict[str, Any]]:
    """Compare with the CPU's plain operators in float32."""
    is_half = precision in ('float16', 'bfloat16')
    if is_half:
        require(context, precision)
    expected = compute(context, name, 'cpu')
    if context.kind == 'gpu':
        switch_tf32(precision == 'tf32')
    kernels = 'cpu' if context.kind == 'cpu' else 'plain'
    found = compute(context, name, context.device, precision if is_half else None, kernels)
    return judge(found, expected, precision,
                 'plain operators' if context.kind == 'cpu' else 'the CPU')


def check_fused(context: Context, name: str, dtype: str) -> tuple[str, dict[str, Any]]:
    """Compare attention that is fused with the plain one, both in half precision."""
    require(context, dtype)
    plain = compute(context, name, context.device, dtype)
    fused = compute(context, name, context.device, dtype, 'fused')
    return judge(fused, plain, dtype, 'plain attention')


def require(context: Context, dtype: str) -> None:
    """Raise CheckSkipped unless the device can compute in it."""
    paddle.set_device(context.device)
    if not is_supported(dtype):
        raise CheckSkipped(f'the device cannot compute in {dtype}')


def compute(context: Context, name: str, device: str, dtype: str | None = None,
            kernels: str = 'plain') -> dict[str, np.ndarray]:
    """Return {"logits": ..., parameter: gradient} of a tiny model, float32.

    dtype: of AMP O1; None: float32. kernels: those of common.kernels that are installed.
    """
    model, config = build_filled(context, context.project.tiny_models[name], device)
    if kernels != 'plain' and install(model, kernels, dtype or 'float32') == 0:
        raise CheckSkipped('no layer takes these kernels')
    model.eval()                        # without dropout
    generator = np.random.default_rng(1)
    size = config.DATA.IMAGE_SIZE
    images = paddle.to_tensor(generator.standard_normal([BATCH, 3, size, size]).astype('float32'))
    labels = paddle.to_tensor(generator.integers(0, config.MODEL.NUM_CLASSES, BATCH))
    with Precision(dtype is not None, 'O1', dtype or 'float16').autocast():
        logits = model(images).astype('float32')
        F.cross_entropy(logits, labels).backward()
    return {'logits': logits.numpy(), **{
        key: value.grad.astype('float32').numpy() for key, value in model.named_parameters()
        if value.grad is not None}}


def build_filled(context: Context, options: Mapping[str, Any], device: str
                 ) -> tuple[nn.Layer, Any]:
    """Return (a model on the device, its config); the weights depend on nothing but the seed."""
    paddle.set_device(device)
    config = context.project.get_config(flags=dict(options))
    model: Any = context.project.build_model(config)
    generator = np.random.default_rng(0)
    for parameter in model.parameters():
        if not parameter.stop_gradient:
            values = generator.standard_normal(parameter.shape)
            values *= parameter.shape[0] ** -0.5 if parameter.ndim == 2 else 0.1
            parameter.set_value((values + (parameter.ndim == 1)).astype('float32'))
    fixed = {name: parameter for name, parameter in model.named_parameters()
             if parameter.stop_gradient}
    for parameter in fixed.values():    # random features, say, which are drawn by the device
        values = generator.standard_normal(parameter.shape).astype('float32')
        parameter.set_value(values if parameter.ndim == 2 else 0.1 * values)
    return model, config


def judge(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], precision: str,
          reference: str) -> tuple[str, dict[str, Any]]:
    """Return what is said of two results that agree. Raises CheckFailed, naming what does not."""
    if set(found) != set(expected):
        missing = sorted(set(found) ^ set(expected))
        raise CheckFailed(f'gradients on one side only: {missing[0]}')
    floor = SMALL * max(np.linalg.norm(value) for value in expected.values())
    errors = {name: float(np.linalg.norm(found[name] - expected[name])
                          / max(np.linalg.norm(expected[name]), floor)) for name in expected}
    logits = errors.pop('logits')
    worst = max(errors, key=lambda name: (np.isnan(errors[name]), errors[name]))
    limits = TOLERANCES[precision], GRADIENT_TOLERANCES[precision]
    figures = {'logits': logits, 'worst': worst, 'error': errors[worst], 'tolerances': limits}
    text = (f'logits differ by {logits:.1e}, gradients by {errors[worst]:.1e} ({worst}) from '
            f'{reference}')
    if not (logits <= limits[0] and errors[worst] <= limits[1]):        # NaN is bad, too
        bad = sum(not error <= limits[1] for error in errors.values())
        raise CheckFailed(f'{text}; at most {limits[0]:.0e} and {limits[1]:.0e}, which '
                          f'{bad} of {len(errors)} gradients exceed',
                          {**figures, 'errors': errors})
    return text, figures
