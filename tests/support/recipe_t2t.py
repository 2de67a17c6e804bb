"""The weights that T2T-ViT's reference numbers were computed with.

They differ from those of tests/support/recipe.py: the performer's key must stay small,
or its attention would vanish and a test would not see it.
"""

import numpy as np

from tests.support.recipe import draw


def t2t_weight(name, shape, salt=0):
    """Return the float32 value of a T2T-ViT parameter other than pos_embed."""
    normal = draw(name, shape, salt)
    if name == 'cls_token' or name.endswith('.bias'):
        return np.float32(0.02) * normal
    if len(shape) == 1:
        return np.float32(1) + np.float32(0.1) * normal
    if name.endswith('.w'):
        return np.float32(0.7) * normal
    return np.float32(0.02 if name.endswith('kqv.weight') else 0.05) * normal


def fill_t2t(model, salt=0):
    """Set every weight but the fixed position embedding to the recipe's."""
    import paddle
    with paddle.no_grad():
        for name, tensor in model.state_dict().items():
            if name != 'pos_embed':
                tensor.set_value(t2t_weight(name, tensor.shape, salt))
    return model
