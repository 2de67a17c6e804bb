"""Weights and images that a test and a fixture's maker both compute, so that neither is stored."""

import zlib

import numpy as np


def draw(name, shape, salt=0):
    """Return standard normal float32 values that depend on the name and the salt alone."""
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()) + salt))
    return generator.standard_normal(shape).astype('float32')


def recipe_weight(name, shape, salt=0):
    """Return the float32 value of the parameter `name` in its canonical (Paddle) shape."""
    normal = draw(name, shape, salt)
    if name in ('cls_token', 'position_embedding', 'pos_embed'):
        return np.float32(0.02) * normal
    if len(shape) == 1 and name.endswith('.weight'):
        return np.float32(1) + np.float32(0.1) * normal
    if len(shape) == 1:
        return np.float32(0.02) * normal
    fan_in = shape[0] if len(shape) == 2 else int(np.prod(shape[1:]))
    return normal / np.float32(np.sqrt(fan_in))


def fill_by_recipe(model, salt=0, keep=()):
    """Set a model's weights to the recipe's; names in `keep` stay as they are."""
    import paddle
    with paddle.no_grad():
        for name, tensor in model.state_dict().items():
            if name not in keep:
                tensor.set_value(recipe_weight(name, tensor.shape, salt))
    return model


def recipe_images(batch_size, image_size, salt=0, channels=3):
    """Return float32 images [batch_size, channels, image_size, image_size], normally distributed.

    A smaller batch is not the start of a larger one's stream in general, so ask
    for the batch size that the fixture was made with.
    """
    generator = np.random.Generator(np.random.PCG64(20261120 + salt))
    shape = (batch_size, channels, image_size, image_size)
    return generator.standard_normal(shape).astype('float32')
