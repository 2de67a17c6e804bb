#!/bin/sh
# Evaluate on every visible GPU; CUDA_VISIBLE_DEVICES=0,1 or -nprocs=2 takes fewer.
# Further arguments are passed on:
#   PRETRAINED=./vit_base_patch16_224.pdparams CFG=configs/vit_base_patch16_224.yaml \
#       sh run_eval_multi.sh
exec "${PYTHON:-python}" "$(dirname "$0")/main_multi_gpu.py" \
    -cfg="${CFG:-configs/vit_tiny_patch16_224.yaml}" \
    -dataset=imagenet2012 \
    -data_path="${DATA_PATH:-/dataset/imagenet}" \
    -batch_size="${BATCH_SIZE:-256}" \
    -eval \
    -pretrained="${PRETRAINED:-./vit_tiny_patch16_224.pdparams}" \
    -amp "$@"
