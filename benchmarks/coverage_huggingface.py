"""Hugging Face's plain ViTs and their relatives, for benchmarks/coverage.py: class by class."""

import json

import numpy as np

from benchmarks.coverage_sizes import (
    CLASSES,
    DEPTH,
    HEADS,
    IMAGE_SIZE,
    PATCH_SIZE,
    WIDTH,
    attempt,
    make_images,
    randomize,
)

SIZES = {'image_size': IMAGE_SIZE, 'patch_size': PATCH_SIZE, 'hidden_size': WIDTH,
         'num_hidden_layers': DEPTH, 'num_attention_heads': HEADS,
         'intermediate_size': 4 * WIDTH}
TEXT = {'hidden_size': 32, 'num_hidden_layers': 1, 'num_attention_heads': 2,
        'intermediate_size': 32, 'vocab_size': 50, 'max_position_embeddings': 8}
TOWERS = {'vision_config': SIZES, 'text_config': TEXT, 'projection_dim': 24}
DECODER = {'decoder_hidden_size': 32, 'decoder_num_hidden_layers': 1,
           'decoder_num_attention_heads': 2, 'decoder_intermediate_size': 32}

# (name, class, changes of the config, what is compared). "tokens": after the last norm.
CASES = (
    ('vit', 'ViTModel', {}, 'tokens'),
    ('vit_classifier', 'ViTForImageClassification', {}, 'logits'),
    ('vit_no_pooler', 'ViTModel', {'add_pooling_layer': False}, 'tokens'),
    ('vit_no_qkv_bias', 'ViTForImageClassification', {'qkv_bias': False}, 'logits'),
    ('vit_gelu_new', 'ViTForImageClassification', {'hidden_act': 'gelu_new'}, 'logits'),
    ('vit_gelu_tanh', 'ViTForImageClassification', {'hidden_act': 'gelu_pytorch_tanh'}, 'logits'),
    ('vit_gelu_fast', 'ViTForImageClassification', {'hidden_act': 'gelu_fast'}, 'logits'),
    ('vit_gelu_python', 'ViTForImageClassification', {'hidden_act': 'gelu_python'}, 'logits'),
    ('vit_quick_gelu', 'ViTForImageClassification', {'hidden_act': 'quick_gelu'}, 'logits'),
    ('vit_relu', 'ViTForImageClassification', {'hidden_act': 'relu'}, 'logits'),
    ('vit_eps', 'ViTForImageClassification', {'layer_norm_eps': 1e-3}, 'logits'),
    ('vit_heads', 'ViTForImageClassification', {'num_attention_heads': 8}, 'logits'),
    ('vit_grey', 'ViTModel', {'num_channels': 1}, 'tokens'),
    ('vit_masked', 'ViTForMaskedImageModeling', {}, 'encoder'),
    ('vit_half', 'ViTForImageClassification', {'dtype': 'float16'}, 'logits'),
    ('vit_bfloat16', 'ViTForImageClassification', {'dtype': 'bfloat16'}, 'logits'),
    ('vit_sharded', 'ViTForImageClassification', {'shards': '60KB'}, 'logits'),
    ('deit', 'DeiTModel', {}, 'tokens'),
    ('deit_classifier', 'DeiTForImageClassification', {}, 'logits'),
    ('deit_teacher', 'DeiTForImageClassificationWithTeacher', {}, 'logits'),
    ('deit_masked', 'DeiTForMaskedImageModeling', {}, 'encoder'),
    ('dinov2', 'Dinov2Model', {}, 'tokens'),
    ('dinov2_no_qkv_bias', 'Dinov2Model', {'qkv_bias': False}, 'tokens'),
    ('dinov2_classifier', 'Dinov2ForImageClassification', {}, 'encoder'),
    ('dinov2_backbone', 'Dinov2Backbone', {}, 'layers'),
    ('dinov2_swiglu', 'Dinov2Model', {'use_swiglu_ffn': True}, 'tokens'),
    ('dinov2_registers', 'Dinov2WithRegistersModel', {}, 'tokens'),
    ('dinov2_registers_classifier', 'Dinov2WithRegistersForImageClassification', {}, 'encoder'),
    ('dinov2_registers_eight', 'Dinov2WithRegistersModel', {'num_register_tokens': 8}, 'tokens'),
    ('dinov3', 'DINOv3ViTModel', {}, 'tokens'),
    ('dinov3_registers', 'DINOv3ViTModel', {'num_register_tokens': 4}, 'tokens'),
    ('dinov3_qkv_bias', 'DINOv3ViTModel', {'query_bias': True, 'value_bias': True}, 'tokens'),
    ('dinov3_gated', 'DINOv3ViTModel', {'use_gated_mlp': True}, 'tokens'),
    ('mae', 'ViTMAEModel', DECODER, 'mae'),
    ('mae_decoder', 'ViTMAEForPreTraining', DECODER, 'mae'),
    ('msn', 'ViTMSNModel', {}, 'tokens'),
    ('msn_classifier', 'ViTMSNForImageClassification', {}, 'logits'),
    ('ijepa', 'IJepaModel', {}, 'tokens'),
    ('ijepa_classifier', 'IJepaForImageClassification', {}, 'logits'),
    ('clip', 'CLIPModel', TOWERS, 'projection'),
    ('clip_vision', 'CLIPVisionModel', {}, 'pooled'),
    ('clip_projection', 'CLIPVisionModelWithProjection', {'projection_dim': 24}, 'projection'),
    ('clip_gelu', 'CLIPVisionModelWithProjection', {'hidden_act': 'gelu'}, 'projection'),
    ('clip_classifier', 'CLIPForImageClassification', TOWERS, 'logits'),
    ('metaclip2', 'MetaClip2Model', TOWERS, 'projection'),
    ('metaclip2_vision', 'MetaClip2VisionModel', {}, 'pooled'),
    ('metaclip2_projection', 'MetaClip2VisionModelWithProjection', {'projection_dim': 24},
     'projection'),
    ('siglip', 'SiglipModel', TOWERS, 'image'),
    ('siglip_vision', 'SiglipVisionModel', {}, 'pooled'),
    ('siglip_gelu', 'SiglipVisionModel', {'hidden_act': 'gelu'}, 'pooled'),
    ('siglip_no_head', 'SiglipVisionModel', {'vision_use_head': False}, 'tokens'),
    ('siglip_classifier', 'SiglipForImageClassification', TOWERS, 'logits'),
    ('siglip2_naflex', 'Siglip2VisionModel', {'num_patches': 16}, 'nothing'),
    ('chinese_clip', 'ChineseCLIPVisionModel', {}, 'pooled'),
    ('altclip', 'AltCLIPVisionModel', {}, 'pooled'),
    ('beit', 'BeitModel', {'use_relative_position_bias': True}, 'tokens'),
    ('beit_classifier', 'BeitForImageClassification', {'use_mask_token': True}, 'logits'),
    ('data2vec', 'Data2VecVisionModel', {'use_relative_position_bias': True}, 'tokens'),
    ('yolos', 'YolosModel', {'image_size': [32, 32], 'num_detection_tokens': 4}, 'tokens'),
    ('videomae', 'VideoMAEModel', {'num_frames': 2}, 'nothing'),
    ('vivit', 'VivitModel', {'num_frames': 2, 'tubelet_size': [2, 8, 8]}, 'nothing'),
    ('aimv2', 'Aimv2VisionModel', {}, 'nothing'),
)


def write_all(folder):
    """Write every case as save_pretrained does; return {name: why it was not}."""
    from benchmarks.torch_setup import prepare_torchvision
    prepare_torchvision()
    failed = {name: attempt(write_case, kind, dict(changes), compared, folder / name)
              for name, kind, changes, compared in CASES}
    return {name: reason for name, reason in failed.items() if reason}


def write_case(kind, changes, compared, target):
    """Write one case's folder, with expected.npz."""
    import torch
    import transformers
    dtype = getattr(torch, changes.pop('dtype', 'float32'))
    shards = changes.pop('shards', '5GB')
    options = {'add_pooling_layer': False} if changes.pop('add_pooling_layer', True) is False \
        else {}
    cls = getattr(transformers, kind)
    sizes = {} if 'vision_config' in changes else SIZES
    config = cls.config_class(**{**sizes, 'num_labels': CLASSES, **changes})
    config._attn_implementation = 'eager'
    model = cls(config, **options).eval()
    randomize(model)
    model.to(dtype).save_pretrained(target, max_shard_size=shards)
    with torch.no_grad():
        expected = compute(model.double(), config, compared)
    np.savez(target / 'expected.npz', **expected)
    (target / 'class.json').write_text(json.dumps({'class': kind, 'changes': repr(changes)}))


def compute(model, config, compared):
    """Return {logits, features or tokens: ndarray} that the peer computes."""
    import torch
    channels = getattr(config, 'num_channels', 3)
    images = torch.from_numpy(make_images())[:, :channels]
    if compared == 'nothing':
        return {'tokens': np.zeros(1)}
    if compared == 'logits':
        return {'logits': model(images).logits.numpy()}
    if compared == 'projection':
        found = model.get_image_features(images) if hasattr(model, 'get_image_features') \
            else model(images).image_embeds
        found = getattr(found, 'pooler_output', found)
        return {'logits': found.numpy()}
    if compared == 'image':
        found = model.get_image_features(images)
        return {'features': getattr(found, 'pooler_output', found).numpy()}
    if compared == 'pooled':
        return {'features': model(images).pooler_output.numpy()}
    if compared == 'mae':               # without a mask, and without a shuffle
        encoder = getattr(model, 'vit', model)
        encoder.embeddings.config.mask_ratio = 0.
        order = torch.arange((IMAGE_SIZE // PATCH_SIZE) ** 2)[None].expand(len(images), -1)
        return {'tokens': encoder(images, noise=order).last_hidden_state.numpy()}
    if compared == 'layers':
        hidden = model.encoder(model.embeddings(images)).last_hidden_state
        return {'tokens': model.layernorm(hidden).numpy()}
    encoder = model
    if compared == 'encoder':
        encoder = next(getattr(model, name) for name in (
            'vit', 'deit', 'dinov2', 'dinov2_with_registers') if hasattr(model, name))
    return {'tokens': encoder(images).last_hidden_state.numpy()}
