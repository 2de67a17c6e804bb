"""An optimizer's state by structured parameter names, so that it outlives the process.

Paddle names parameters in the order they are built (`linear_3.w_0`) and keys
optimizer state by those names (`linear_3.w_0_moment1_0`). A second model in
the same process shifts them all, and `set_state_dict` then loads nothing,
silently. Here state is {structured name: {accumulator: array}}, such as
state['encoder.layers.0.attn.qkv.weight']['moment1'], and loading writes into
the live accumulators, so that nothing can be left over or missed.
"""

import re
from typing import Any

import numpy as np
import paddle

from common.errors import UserError

MASTER_WEIGHT = 'master_weight'     # float32 copy of a half-precision parameter (AMP O2)


def name_parameters(model: paddle.nn.Layer) -> dict[str, str]:
    """Return {structured name: generated name} of a model's parameters."""
    return {name: parameter.name for name, parameter in model.named_parameters()}


def read_optimizer(optimizer: paddle.optimizer.Optimizer, generated_names: dict[str, str]
                   ) -> dict[str, dict[str, Any]]:
    """Return the live state {structured name: {accumulator: tensor}}; empty before any step.

    generated_names: {structured name: generated name}, see `name_parameters`.
    """
    return group_by_parameter(optimizer.state_dict(), generated_names)


def group_by_parameter(state_dict: dict, generated_names: dict[str, str]
                       ) -> dict[str, dict[str, Any]]:
    """Sort an optimizer's `state_dict()` by parameter.

    Returns {structured name: {accumulator: value}}. Raises UserError for an entry
    that belongs to no parameter.
    """
    structured = {generated: name for name, generated in generated_names.items()}
    grouped = {}
    for key, value in state_dict.items():
        if key == 'LR_Scheduler':
            continue
        if key == 'master_weights':
            for generated, weight in value.items():
                if generated not in structured:
                    raise UserError(f'The optimizer state names an unknown parameter {generated}.')
                grouped.setdefault(structured[generated], {})[MASTER_WEIGHT] = weight
            continue
        generated, accumulator = _split_key(key, structured)
        grouped.setdefault(structured[generated], {})[accumulator] = value
    return grouped


def write_optimizer(optimizer: paddle.optimizer.Optimizer, model: paddle.nn.Layer,
                    state: dict[str, dict], weights: dict[str, np.ndarray]) -> None:
    """Set an optimizer's state and its model's parameters, exactly.

    state: {structured name: {accumulator: ndarray}}. weights: {structured name: ndarray},
    one for every parameter. Accumulators exist only after a parameter's first update, so
    one update with zero gradients makes them before the true values are set; only the
    parameters in `state` get accumulators, as in the run that was saved. Raises UserError
    if names or shapes are not the model's and optimizer's; both are then to be thrown away.
    """
    parameters = dict(model.named_parameters())
    for name in state:
        if name not in parameters:
            raise UserError(f'The optimizer state is of another model: it has {name}.')
    optimizer.clear_grad()
    for name in state:
        parameters[name].grad = paddle.zeros_like(parameters[name])
    if state:
        optimizer.step()
    optimizer.clear_grad(set_to_zero=False)

    for name, parameter in parameters.items():
        assign_array(parameter, weights[name])
    live = read_optimizer(optimizer, name_parameters(model))
    for name, accumulators in state.items():
        targets = live.get(name, {})
        accumulators = dict(accumulators)
        if MASTER_WEIGHT in targets:
            accumulators.setdefault(MASTER_WEIGHT, weights[name])
        elif MASTER_WEIGHT in accumulators:
            # The run was O2 and is float32 now: its weights are those that were not rounded.
            assign_array(parameters[name], accumulators.pop(MASTER_WEIGHT))
        if set(accumulators) != set(targets):
            raise UserError(
                f'The optimizer state is of another optimizer: {name} has '
                f'{_list(accumulators)}; this one keeps {_list(targets)}.')
        for accumulator, array in accumulators.items():
            target = targets[accumulator]
            if list(array.shape) != list(target.shape):
                raise UserError(
                    f'The optimizer state is of another model: {accumulator} of {name} has '
                    f'shape {list(array.shape)}, expected {list(target.shape)}.')
            assign_array(target, array)


def assign_array(tensor: paddle.Tensor, array: np.ndarray) -> None:
    """Set a live tensor to an ndarray of the same shape, in the tensor's own dtype and place."""
    value = paddle.to_tensor(array, place=paddle.CPUPlace()).cast(tensor.dtype)
    is_on_host = tensor.place.is_cpu_place()
    tensor.set_value(value)
    # Paddle 2.6 takes what lies on the host, as AdamW's powers of beta, to the device.
    if is_on_host and not tensor.place.is_cpu_place():
        tensor.get_tensor()._share_data_with(value.get_tensor())


def _split_key(key, structured):
    """Split "linear_3.w_0_fp32_master_0_moment1_0" into ("linear_3.w_0", "moment1")."""
    end = len(key)
    while (end := key.rfind('_', 0, end)) > 0:
        if key[:end] in structured:
            accumulator = re.sub(r'^fp32_master_\d+_', '', key[end + 1:])
            return key[:end], re.sub(r'_\d+$', '', accumulator)
    raise UserError(f'The optimizer state has an entry of an unknown parameter: {key}.')


def _list(names):
    return ', '.join(sorted(names)) or 'nothing'
