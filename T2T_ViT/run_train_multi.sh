#!/bin/sh
# Train on every visible GPU; CUDA_VISIBLE_DEVICES=0,1 or -nprocs=2 takes fewer.
# An interrupted run is continued; RESUME= begins a new one. Further arguments are passed on;
# ../common/run/launch.sh tells what the environment may set:
#   DATA_PATH=/dataset/imagenet CFG=configs/t2t_vit_14.yaml sh run_train_multi.sh
here=$(dirname "$0")
exec sh "$here/../common/run/launch.sh" "$here/main_multi_gpu.py" configs/t2t_vit_7.yaml 32 \
    -resume="${RESUME-auto}" "$@"
