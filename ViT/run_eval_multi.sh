#!/bin/sh
# Evaluate on every visible GPU; CUDA_VISIBLE_DEVICES=0,1 or -nprocs=2 takes fewer.
# Further arguments are passed on; ../common/run/launch.sh tells what the environment may set:
#   CFG=configs/vit_base_patch16_224.yaml PRETRAINED=./vit_base_patch16_224.pdparams sh run_eval_multi.sh
here=$(dirname "$0")
exec sh "$here/../common/run/launch.sh" "$here/main_multi_gpu.py" configs/vit_tiny_patch16_224.yaml 256 \
    -eval -pretrained="${PRETRAINED:-./vit_tiny_patch16_224.pdparams}" -amp "$@"
