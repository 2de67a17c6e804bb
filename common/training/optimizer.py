"""Optimizers: which parameters learn, at what rate, and which decay."""

import paddle
from paddle.nn.clip import _squared_l2_norm

from common.errors import UserError
from common.training.finetune import scale_learning_rates


def build_optimizer(config, model):
    """Return the optimizer of TRAIN.OPTIMIZER over the model's trainable parameters.

    Parameters form groups by learning-rate factor and weight decay. The learning
    rate itself is set before every update. Gradients are clipped by the loop: Paddle
    would clip each group by its own norm.
    """
    options = config.TRAIN.OPTIMIZER
    groups = group_parameters(config, model)
    common = {'learning_rate': config.TRAIN.BASE_LR, 'parameters': groups,
              'weight_decay': config.TRAIN.WEIGHT_DECAY}
    betas = {'beta1': options.BETAS[0], 'beta2': options.BETAS[1], 'epsilon': options.EPS}
    if options.NAME == 'AdamW':
        return paddle.optimizer.AdamW(**common, **betas)
    if options.NAME == 'Adam':          # weight decay is an L2 term of the gradient here
        return paddle.optimizer.Adam(**common, **betas)
    if options.NAME == 'Lamb':
        return build_lamb(config, groups, betas)
    if options.NAME == 'Lars':
        raise UserError('TRAIN.OPTIMIZER.NAME Lars: Paddle has it for static graphs only. '
                        'For large batches use Lamb.')
    return paddle.optimizer.Momentum(
        **common, momentum=options.MOMENTUM, use_nesterov=options.NESTEROV)


def build_lamb(config, groups, betas):
    """Return Lamb over the groups; it takes weight decay as a function of the parameter."""
    kept_whole = {parameter.name for group in groups if not group['weight_decay']
                  for parameter in group['params']}
    groups = [{'params': group['params'], 'learning_rate': group['learning_rate']}
              for group in groups]
    return paddle.optimizer.Lamb(
        learning_rate=config.TRAIN.BASE_LR, parameters=groups,
        lamb_weight_decay=config.TRAIN.WEIGHT_DECAY,
        exclude_from_weight_decay_fn=lambda parameter: parameter.name in kept_whole, **betas)


def group_parameters(config, model):
    """Return optimizer groups: dicts with params, learning_rate (a factor) and weight_decay.

    No decay on biases, norm scales and what the model names in `no_weight_decay()`
    (class token, position embedding), nor on TRAIN.NO_WEIGHT_DECAY. The factors are those
    of TRAIN.LAYER_DECAY and HEAD_LR_SCALE. Every trainable parameter is in exactly one
    group, in the model's order. Raises UserError if nothing is left to train.
    """
    train = config.TRAIN
    kept_whole = set(model.no_weight_decay()) | set(train.NO_WEIGHT_DECAY)
    unknown = set(train.NO_WEIGHT_DECAY) - {name for name, _ in model.named_parameters()}
    if unknown:
        raise UserError(f'TRAIN.NO_WEIGHT_DECAY names {sorted(unknown)[0]!r}, '
                        'which the model does not have.')
    factors = scale_learning_rates(config, model)
    groups = {}
    for name, parameter in model.named_parameters():
        if parameter.stop_gradient:
            continue
        decays = parameter.ndim > 1 and name not in kept_whole
        weight_decay = train.WEIGHT_DECAY if decays else 0.0
        groups.setdefault((factors[name], weight_decay), []).append(parameter)
    if not groups:
        raise UserError('Every parameter is frozen (MODEL.FREEZE): nothing would be learnt.')
    return [{'params': parameters, 'learning_rate': factor, 'weight_decay': weight_decay}
            for (factor, weight_decay), parameters in groups.items()]


@paddle.no_grad()
def clip_gradients(parameters, max_norm):
    """Scale all gradients so that their global L2 norm is at most `max_norm`.

    max_norm: None only measures. Returns the norm before clipping, a scalar tensor.
    Paddle's own clip_grad_norm_ is ten times as slow on a CPU, where its norm of a large
    tensor has but three digits.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = paddle.add_n([_squared_l2_norm(gradient) for gradient in gradients]).sqrt()
    if max_norm is None:
        return norm.reshape([])
    factor = (max_norm / (norm + 1e-6)).clip(max=1.0)
    if norm.place.is_cpu_place():           # nothing to wait for: a number is three times as fast
        factor = factor.item()
        for gradient in gradients:
            gradient.scale_(factor)
    else:
        for gradient in gradients:
            gradient.multiply_(factor)
    return norm.reshape([])
