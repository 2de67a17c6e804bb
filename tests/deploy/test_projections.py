"""Separate projections give the numbers of the model, and leave it as it was."""

import numpy as np
import paddle
import pytest

from common.deploy.projections import separate_projections
from common.kernels import fast
from T2T_ViT.t2t_vit import T2TViT
from ViT.vit import VisionTransformer

CASES = {
    'vit': (VisionTransformer, {}),
    'vit, no qkv bias, other head size': (VisionTransformer, {'qkv_bias': False,
                                                              'attn_head_size': 10}),
    't2t': (T2TViT, {'qkv_bias': True}),
    't2t, transformer, other scale': (T2TViT, {'token_type': 'transformer', 'qk_scale': 0.3}),
}


@pytest.mark.parametrize('accelerated', [False, True])
@pytest.mark.parametrize('name', CASES)
def test_same_logits_and_nothing_left_behind(name, accelerated):
    kind, options = CASES[name]
    paddle.seed(1)
    model = kind(image_size=48, embed_dim=48, depth=3, num_heads=4, num_classes=10, **options)
    for parameter in model.parameters():        # biases are 0 when a model is new
        if parameter.ndim == 1:
            parameter.set_value(parameter + 0.1 * paddle.randn(parameter.shape))
    model.eval()
    if accelerated:
        fast.accelerate(model)
    images = paddle.randn([2, 3, 48, 48])
    with paddle.no_grad():
        expected = model(images).numpy()
        before = list(model.state_dict()), [vars(layer).get('forward')
                                            for layer in model.sublayers()]
        with separate_projections(model):
            found = model(images).numpy()
            attention = model.blocks[0].attn
            assert {'q', 'k', 'v'} <= set(attention._sub_layers)
            attention.v.weight.set_value(attention.v.weight * 2)        # it is what is used
            assert np.abs(model(images).numpy() - found).max() > 1e-4
        after = list(model.state_dict()), [vars(layer).get('forward')
                                           for layer in model.sublayers()]
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
        assert after == before
        np.testing.assert_array_equal(model(images).numpy(), expected)
