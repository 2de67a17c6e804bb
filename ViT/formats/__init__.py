"""One small file for each format that checkpoints come in, each with one table of names."""

from ViT.formats import (
    google,
    huggingface,
    mindcv,
    mmpretrain,
    paddleclas,
    timm,
    vit_pytorch,
)

# The first whose signature is among a file's names is taken.
FORMATS = (
    google.FORMAT,
    huggingface.FORMAT,
    vit_pytorch.FORMAT,
    mmpretrain.FORMAT,
    mindcv.FORMAT,
    paddleclas.FORMAT,
    timm.FORMAT,
)
