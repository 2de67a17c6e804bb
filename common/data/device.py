"""Normalise uint8 image batches on the device.

Workers hand over uint8 pixels, a quarter of the bytes of float32; the device
turns them into the model's input. Training and evaluation share this code.
"""

import numpy as np
import paddle


class Preprocess:
    """Turn uint8 images [B, H, W, C] into normalised float32 [B, C, H, W].

    The result is (pixel / 255 - mean) / std, written as pixel * scale + shift so
    that the batch is passed over once; it differs from the division by rounding
    only (below 1e-6 at the usual means).
    """

    def __init__(self, config):
        mean = np.asarray(config.DATA.IMAGENET_MEAN, 'float64')
        std = np.asarray(config.DATA.IMAGENET_STD, 'float64')
        self.channels = len(mean)
        scale = 1 / (255 * std)
        shift = -mean / std
        # Channels of equal constants, as with mean = std = 0.5, need no tensor.
        self.uniform = bool(np.all(scale == scale[0]) and np.all(shift == shift[0]))
        if self.uniform:
            self.scale, self.shift = float(scale[0]), float(shift[0])
        else:
            shape = [1, self.channels, 1, 1]
            self.scale = paddle.to_tensor(scale.astype('float32').reshape(shape))
            self.shift = paddle.to_tensor(shift.astype('float32').reshape(shape))

    def __call__(self, images):
        """Return the model's input. images: uint8 tensor or array [B, H, W, C]."""
        if not isinstance(images, paddle.Tensor):
            images = paddle.to_tensor(images)
        assert images.dtype == paddle.uint8, f'uint8 pixels expected, not {images.dtype}'
        assert images.ndim == 4 and images.shape[3] == self.channels, images.shape
        # Transposing first moves bytes, not floats.
        pixels = images.transpose([0, 3, 1, 2]).astype('float32')
        if self.uniform:
            return paddle.scale(pixels, self.scale, self.shift)
        return pixels * self.scale + self.shift
