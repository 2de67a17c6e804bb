"""One small file for each format that checkpoints come in, each with one table of names."""

from common.weights.formats import (
    google,
    huggingface,
    mindcv,
    mmpretrain,
    paddleclas,
    paddlevit,
    t2t,
    timm,
    vit_pytorch,
)

# The first whose signature is among a file's names is taken.
FORMATS = [
    paddlevit.FORMAT,
    paddlevit.T2T_FORMAT,
    t2t.FORMAT,
    google.FORMAT,
    huggingface.FORMAT,
    vit_pytorch.FORMAT,
    mmpretrain.FORMAT,
    mindcv.FORMAT,
    paddleclas.FORMAT,
    timm.FORMAT,
]
