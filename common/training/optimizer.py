"""Optimizers: which parameters learn, at what rate, and which decay."""

import paddle

from common.errors import UserError


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
    if options.NAME == 'Adam':
        return paddle.optimizer.Adam(**common, **betas)
    return paddle.optimizer.Momentum(
        **common, momentum=options.MOMENTUM, use_nesterov=options.NESTEROV)


def group_parameters(config, model):
    """Return optimizer groups: dicts with params, learning_rate (a factor) and weight_decay.

    No decay on biases, norm scales and what the model names in `no_weight_decay()`
    (class token, position embedding), nor on TRAIN.NO_WEIGHT_DECAY. Every trainable
    parameter is in exactly one group, in the model's order.
    """
    train = config.TRAIN
    kept_whole = set(model.no_weight_decay()) | set(train.NO_WEIGHT_DECAY)
    unknown = set(train.NO_WEIGHT_DECAY) - {name for name, _ in model.named_parameters()}
    if unknown:
        raise UserError(f'TRAIN.NO_WEIGHT_DECAY names {sorted(unknown)[0]!r}, '
                        'which the model does not have.')
    groups = {}
    for name, parameter in model.named_parameters():
        if parameter.stop_gradient:
            continue
        decays = parameter.ndim > 1 and name not in kept_whole
        weight_decay = train.WEIGHT_DECAY if decays else 0.0
        factor = 1.0
        groups.setdefault((factor, weight_decay), []).append(parameter)
    return [{'params': parameters, 'learning_rate': factor, 'weight_decay': weight_decay}
            for (factor, weight_decay), parameters in groups.items()]


def clip_gradients(parameters, max_norm):
    """Scale all gradients so that their global L2 norm is at most `max_norm`.

    max_norm: None only measures. Returns the norm before clipping, a scalar tensor.
    """
    limit = float('inf') if max_norm is None else max_norm
    return paddle.nn.utils.clip_grad_norm_(parameters, limit)
