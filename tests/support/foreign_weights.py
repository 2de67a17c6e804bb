"""Other projects' checkpoint files, the small models that they fit, and their sources' logits."""

from T2T_ViT.t2t_vit import T2TViT
from tests.support.paths import FIXTURES
from ViT.vit import VisionTransformer

WEIGHTS = FIXTURES / 'weights'


def vit(image_size=64, **changes):
    arguments = {'patch_size': 16, 'num_classes': 7, 'embed_dim': 48, 'depth': 3, 'num_heads': 4}
    return VisionTransformer(image_size=image_size, **{**arguments, **changes})


def t2t(image_size=64, **changes):
    arguments = {'num_classes': 7, 'token_type': 'performer', 'embed_dim': 64, 'depth': 2,
                 'num_heads': 2, 'mlp_ratio': 2., 'qkv_bias': False, 'token_dim': 64}
    return T2TViT(image_size=image_size, **{**arguments, **changes})


def hybrid():
    return vit(patch_size=8, resnet_layers=(2, 1), resnet_width=32)


def in21k():
    return vit(num_classes=13, representation_size=48)


def transformer_tokens(image_size=64):
    return t2t(image_size, token_type='transformer')


def vit_96():
    return vit(96)


def t2t_96():
    return t2t(96)


def transformer_tokens_96():
    return transformer_tokens(96)


# (folder, file, format, model, options, expected file, its array)
CASES = [
    ('vit/google_npz', 'ViT-tiny_fixture.npz', 'Google', vit, {}, 'expected', 'logits'),
    ('vit/google_npz', 'ViT-tiny_fixture.npz', 'Google', vit, {'numerics': 'model'}, 'expected',
     'logits_timm_erf_gelu'),
    ('vit/google_npz', 'ViT-tiny_fixture.npz', 'Google', vit_96, {}, 'expected_resized_96',
     'logits'),
    ('vit/google_npz_in21k', 'ViT-tiny_fixture_in21k.npz', 'Google', in21k, {}, 'expected',
     'logits'),
    ('vit/google_npz_hybrid', 'R-tiny+ViT-tiny_fixture.npz', 'Google', hybrid, {}, 'expected',
     'logits'),
    ('vit/hf_vit', '', 'Hugging Face', vit, {}, 'expected', 'logits'),
    ('vit/hf_vit', 'model.safetensors', 'Hugging Face', vit, {}, 'expected', 'logits'),
    ('vit/hf_vit', 'pytorch_model.bin', 'Hugging Face', vit, {}, 'expected', 'logits'),
    ('vit/jeonsworld_bin', 'fixture_checkpoint.bin', 'ViT-pytorch', vit, {}, 'expected', 'logits'),
    ('vit/mindcv_ckpt', 'vit_tiny.ckpt', 'MindCV', vit, {}, 'expected', 'logits'),
    ('vit/mindcv_ckpt', 'vit_tiny_crc_sliced.ckpt', 'MindCV', vit, {}, 'expected', 'logits'),
    ('vit/mindcv_ckpt', 'vit_tiny_crc_sliced.ckpt', 'MindCV', vit, {'numerics': 'model'},
     'expected', 'logits_exact_gelu'),
    ('vit/mmpretrain_pth', 'epoch_3.pth', 'MMPretrain', vit, {}, 'expected', 'logits'),
    ('vit/paddleclas_pdparams', 'ViT_tiny_fixture_pretrained.pdparams', 'PaddleClas', vit, {},
     'expected', 'logits'),
    ('vit/paddlevit_pdparams', 'vit_tiny_fixture.pdparams', 'PaddleViT', vit, {}, 'expected',
     'logits'),
    ('vit/paddlevit_pdparams', 'vit_tiny_fixture', 'PaddleViT', vit, {}, 'expected', 'logits'),
    ('vit/paddlevit_pdparams', 'Epoch-3-Loss-6.9.pdparams', 'PaddleViT', vit, {}, 'expected',
     'logits'),
    ('vit/timm_pth', 'model.pth', 'timm', vit, {}, 'expected', 'logits'),
    ('vit/timm_pth', 'model_wrapped.pth', 'timm', vit, {}, 'expected', 'logits'),
    ('vit/timm_safetensors', 'model.safetensors', 'timm', vit, {}, 'expected', 'logits'),
    ('vit/timm_safetensors', 'model.safetensors', 'timm', vit_96, {}, 'expected_resized_96',
     'logits'),
    ('t2t/pdparams_performer_bare', 'tiny_t2t_performer', 'PaddleViT T2T-ViT', t2t, {},
     'expected', 'logits'),
    ('t2t/pdparams_transformer_full', 'Epoch-3-Loss-6.9.pdparams', 'PaddleViT T2T-ViT',
     transformer_tokens, {}, 'expected', 'logits'),
    ('t2t/pdparams_transformer_full', 'Epoch-3-Loss-6.9.pdparams', 'PaddleViT T2T-ViT',
     transformer_tokens, {'use_ema': False}, 'expected', 'logits_model'),
    ('t2t/performer_ema_zip', 'tiny_t2t_performer.pth.tar', 'T2T-ViT', t2t, {}, 'expected',
     'logits'),
    ('t2t/performer_ema_zip', 'tiny_t2t_performer.pth.tar', 'T2T-ViT', t2t_96, {},
     'expected_resized_96', 'logits'),
    ('t2t/performer_train_ckpt', 'model_best.pth.tar', 'T2T-ViT', t2t, {}, 'expected', 'logits'),
    ('t2t/performer_train_ckpt', 'model_best.pth.tar', 'T2T-ViT', t2t, {'use_ema': False},
     'expected', 'logits_raw'),
    ('t2t/transformer_module_legacy', 'tiny_t2t_transformer.pth.tar', 'T2T-ViT',
     transformer_tokens, {}, 'expected', 'logits'),
    ('t2t/transformer_module_legacy', 'tiny_t2t_transformer.pth.tar', 'T2T-ViT',
     transformer_tokens_96, {}, 'expected_resized_96', 'logits'),
]


def case_name(case):
    folder, file, _, model, options, _, array = case
    return '-'.join([folder, file, model.__name__, *map(str, options.values()), array])
