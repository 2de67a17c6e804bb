#!/bin/sh
# Train on one GPU, or on the CPU where there is none.
# An interrupted run is continued; RESUME= begins a new one. Further arguments are passed on;
# ../common/run/launch.sh tells what the environment may set:
#   DATA_PATH=/dataset/imagenet CFG=configs/t2t_vit_14.yaml sh run_train.sh
here=$(dirname "$0")
exec sh "$here/../common/run/launch.sh" "$here/main_single_gpu.py" configs/t2t_vit_7.yaml 16 \
    -resume="${RESUME-auto}" "$@"
