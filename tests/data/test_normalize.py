"""Normalisation on the device against its definition in float64."""

import numpy as np
import paddle
import pytest

from common.data.normalize import Preprocess

CONSTANTS = [
    ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5]),
    ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ([0.0, 0.0, 0.0], [0.2, 0.3, 0.4]),
    ([0.5], [0.25]),
]


@pytest.mark.parametrize('mean, std', CONSTANTS)
def test_every_pixel_value_equals_the_definition(mean, std):
    channels = len(mean)
    pixels = np.stack([np.roll(np.arange(256, dtype='uint8'), shift) for shift in range(channels)])
    pixels = np.ascontiguousarray(pixels.T).reshape(2, 8, 16, channels)
    expected = ((pixels / 255 - mean) / std).transpose(0, 3, 1, 2)
    preprocess = Preprocess(mean, std)
    results = [preprocess(pixels), preprocess(paddle.to_tensor(pixels))]
    # The operators that a GPU runs, here on the CPU.
    preprocess.on_cpu = False
    preprocess.scale = paddle.to_tensor(preprocess.scale)
    preprocess.shift = paddle.to_tensor(preprocess.shift)
    results.append(preprocess(paddle.to_tensor(pixels)))
    for result in results:
        assert result.dtype == paddle.float32 and result.stop_gradient
        assert result.shape == [2, channels, 8, 16]
        np.testing.assert_allclose(result.numpy(), expected, rtol=0, atol=1e-6)
        np.testing.assert_array_equal(result.numpy(), results[0].numpy())


def test_only_uint8_pixels_are_taken():
    preprocess = Preprocess([0.5] * 3, [0.5] * 3)
    with pytest.raises(AssertionError, match='uint8'):
        preprocess(np.zeros((1, 4, 4, 3), 'float32'))
    with pytest.raises(AssertionError):
        preprocess(np.zeros((1, 3, 4, 4), 'uint8'))
