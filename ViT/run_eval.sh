#!/bin/sh
# Evaluate on one GPU, or on the CPU where there is none.
# Further arguments are passed on; ../common/run/launch.sh tells what the environment may set:
#   CFG=configs/vit_base_patch16_224.yaml PRETRAINED=./vit_base_patch16_224.pdparams sh run_eval.sh
here=$(dirname "$0")
exec sh "$here/../common/run/launch.sh" "$here/main_single_gpu.py" configs/vit_tiny_patch16_224.yaml 256 \
    -eval -pretrained="${PRETRAINED:-./vit_tiny_patch16_224.pdparams}" -amp "$@"
