"""Optimizers: which parameters learn, at what rate, and which decay."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

import paddle
from paddle.nn.clip import _squared_l2_norm
from yacs.config import CfgNode

from common.errors import UserError
from common.training.finetune import scale_learning_rates


@dataclass(frozen=True)
class OptimizerOptions:
    """What an optimizer is made with. learning_rate: replaced before every update."""

    learning_rate: float
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    momentum: float = 0.9
    nesterov: bool = False


def build_optimizer(config: CfgNode, model: paddle.nn.Layer) -> paddle.optimizer.Optimizer:
    """Return the optimizer of TRAIN.OPTIMIZER over the model's trainable parameters.

    Parameters form groups by learning-rate factor and weight decay. Gradients are clipped
    by the loop: Paddle would clip each group by its own norm.
    """
    train, options = config.TRAIN, config.TRAIN.OPTIMIZER
    groups = group_parameters(model, train.WEIGHT_DECAY, train.NO_WEIGHT_DECAY,
                              train.LAYER_DECAY, train.HEAD_LR_SCALE)
    return OPTIMIZERS[options.NAME](groups, OptimizerOptions(
        train.BASE_LR, train.WEIGHT_DECAY, tuple(options.BETAS), options.EPS, options.MOMENTUM,
        options.NESTEROV))


def build_adamw(groups: list[dict], options: OptimizerOptions) -> paddle.optimizer.Optimizer:
    return paddle.optimizer.AdamW(**_list_common(groups, options), **_list_moments(options))


def build_adam(groups: list[dict], options: OptimizerOptions) -> paddle.optimizer.Optimizer:
    """Adam; weight decay is an L2 term of the gradient here."""
    return paddle.optimizer.Adam(**_list_common(groups, options), **_list_moments(options))


def build_momentum(groups: list[dict], options: OptimizerOptions) -> paddle.optimizer.Optimizer:
    """SGD with momentum, or without where it is 0."""
    return paddle.optimizer.Momentum(**_list_common(groups, options), momentum=options.momentum,
                                     use_nesterov=options.nesterov)


def build_lamb(groups: list[dict], options: OptimizerOptions) -> paddle.optimizer.Optimizer:
    """Lamb, which takes weight decay as a function of the parameter."""
    kept_whole = {parameter.name for group in groups if not group['weight_decay']
                  for parameter in group['params']}
    groups = [{'params': group['params'], 'learning_rate': group['learning_rate']}
              for group in groups]
    return paddle.optimizer.Lamb(
        learning_rate=options.learning_rate, parameters=groups,
        lamb_weight_decay=options.weight_decay,
        exclude_from_weight_decay_fn=lambda parameter: parameter.name in kept_whole,
        **_list_moments(options))


def refuse_lars(groups: list[dict], options: OptimizerOptions) -> NoReturn:
    raise UserError('TRAIN.OPTIMIZER.NAME Lars: Paddle has it for static graphs only. '
                    'For large batches use Lamb.')


# TRAIN.OPTIMIZER.NAME: (groups of group_parameters, options) -> optimizer.
OPTIMIZERS: dict[str, Callable[[list[dict], OptimizerOptions], paddle.optimizer.Optimizer]] = {
    'AdamW': build_adamw,
    'Adam': build_adam,
    'SGD': build_momentum,
    'Momentum': build_momentum,
    'Lamb': build_lamb,
    'Lars': refuse_lars,
}


def _list_common(groups, options):
    return {'learning_rate': options.learning_rate, 'parameters': groups,
            'weight_decay': options.weight_decay}


def _list_moments(options):
    return {'beta1': options.betas[0], 'beta2': options.betas[1], 'epsilon': options.eps}


def group_parameters(
        model: paddle.nn.Layer, weight_decay: float, no_weight_decay: Sequence[str] = (),
        layer_decay: float = 1.0, head_lr_scale: float = 1.0) -> list[dict]:
    """Return optimizer groups: dicts with params, learning_rate (a factor) and weight_decay.

    No decay on biases, norm scales and what the model names in `no_weight_decay()`
    (class token, position embedding), nor on the names in no_weight_decay. The factors
    are those of scale_learning_rates. Every trainable parameter is in exactly one group,
    in the model's order. Raises UserError for an unknown name, and if nothing is left to
    train.
    """
    kept_whole = set(model.no_weight_decay()) | set(no_weight_decay)
    unknown = set(no_weight_decay) - {name for name, _ in model.named_parameters()}
    if unknown:
        raise UserError(f'TRAIN.NO_WEIGHT_DECAY names {sorted(unknown)[0]!r}, '
                        'which the model does not have.')
    factors = scale_learning_rates(model, layer_decay, head_lr_scale)
    groups: dict[tuple[float, float], list] = {}
    for name, parameter in model.named_parameters():
        if parameter.stop_gradient:
            continue
        decays = parameter.ndim > 1 and name not in kept_whole
        groups.setdefault((factors[name], weight_decay if decays else 0.0), []).append(parameter)
    if not groups:
        raise UserError('Every parameter is frozen (MODEL.FREEZE): nothing would be learnt.')
    return [{'params': parameters, 'learning_rate': factor, 'weight_decay': decay}
            for (factor, decay), parameters in groups.items()]


@paddle.no_grad()
def clip_gradients(parameters: Sequence[paddle.Tensor], max_norm: float | None) -> paddle.Tensor:
    """Scale all gradients so that their global L2 norm is at most `max_norm`.

    max_norm: None only measures. Returns the norm before clipping, a scalar tensor.
    Paddle's own clip_grad_norm_ is ten times as slow on a CPU, where its norm of a large
    tensor has but three digits.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    # In half precision a sum of squares overflows, or is zero.
    norm = paddle.add_n([_squared_l2_norm(_to_float32(gradient)) for gradient in gradients]).sqrt()
    if max_norm is None:
        return norm.reshape([])
    factor = (max_norm / (norm + 1e-6)).clip(max=1.0)
    if parameters[0].place.is_cpu_place():  # nothing to wait for: a number is three times as fast
        factor = factor.item()
        for gradient in gradients:
            gradient.scale_(factor)
    else:
        scale_on_device(gradients, factor)
    return norm.reshape([])


def scale_on_device(tensors: Sequence[paddle.Tensor], factor: paddle.Tensor) -> None:
    """Multiply tensors in place by a factor, float32 [1], with one operator for each type.

    It is the one by which loss scaling divides, so that the inverse is given; a tensor in half
    precision is multiplied in float32.
    """
    for dtype in {tensor.dtype for tensor in tensors}:
        group = [tensor for tensor in tensors if tensor.dtype == dtype]
        is_not_finite = paddle.full([1], False, 'bool')         # that is looked at elsewhere
        paddle._legacy_C_ops.check_finite_and_unscale(group, 1 / factor, group, is_not_finite)


def _to_float32(tensor):
    return tensor if tensor.dtype == paddle.float32 else tensor.astype('float32')
