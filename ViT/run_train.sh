#!/bin/sh
# Train on one GPU, or on the CPU where there is none.
# An interrupted run is continued; RESUME= begins a new one. Further arguments are passed on;
# ../common/run/launch.sh tells what the environment may set:
#   DATA_PATH=/dataset/imagenet CFG=configs/vit_small_patch16_224.yaml sh run_train.sh
here=$(dirname "$0")
exec sh "$here/../common/run/launch.sh" "$here/main_single_gpu.py" configs/vit_base_patch16_224.yaml 128 \
    -resume="${RESUME-auto}" -amp "$@"
