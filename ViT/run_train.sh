#!/bin/sh
# Train on one GPU, or on the CPU where there is none. Further arguments are passed on:
#   DATA_PATH=/dataset/imagenet sh run_train.sh -batch_size=64
exec "${PYTHON:-python}" "$(dirname "$0")/main_single_gpu.py" \
    -cfg="${CFG:-configs/vit_base_patch16_224.yaml}" \
    -dataset=imagenet2012 \
    -data_path="${DATA_PATH:-/dataset/imagenet}" \
    -batch_size="${BATCH_SIZE:-128}" \
    -amp "$@"
