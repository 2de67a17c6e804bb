#!/bin/sh
# Evaluate on every visible GPU; CUDA_VISIBLE_DEVICES=0,1 or -nprocs=2 takes fewer.
# Further arguments are passed on; ../common/run/launch.sh tells what the environment may set:
#   CFG=configs/t2t_vit_14.yaml PRETRAINED=./t2t_vit_14.pdparams sh run_eval_multi.sh
here=$(dirname "$0")
exec sh "$here/../common/run/launch.sh" "$here/main_multi_gpu.py" configs/t2t_vit_7.yaml 16 \
    -eval -pretrained="${PRETRAINED:-./t2t_vit_7}" "$@"
