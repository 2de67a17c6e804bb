"""One small file for each source of checkpoints, each with tables of names."""

from ViT.formats import (
    clip,
    google,
    huggingface,
    mindcv,
    mmpretrain,
    paddleclas,
    timm,
    torchvision,
    vit_pytorch,
)

# The first whose signature is among a file's names is taken.
FORMATS = (
    google.FORMAT,
    huggingface.DINOV2_REGISTERS,
    huggingface.DINOV2,
    huggingface.DINOV3,
    huggingface.FORMAT,
    *clip.FORMATS,
    torchvision.FORMAT,
    vit_pytorch.FORMAT,
    mmpretrain.FORMAT,
    mindcv.FORMAT,
    paddleclas.FORMAT,
    timm.FORMAT,
)
