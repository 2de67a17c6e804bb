#!/bin/sh
# Train on every visible GPU; CUDA_VISIBLE_DEVICES=0,1 or -nprocs=2 takes fewer.
# Further arguments are passed on. On several machines, start it on each:
#   MASTER=10.0.0.1:6170 NNODES=2 RANK=0 sh run_train_multi.sh      # on 10.0.0.1
#   MASTER=10.0.0.1:6170 NNODES=2 RANK=1 sh run_train_multi.sh      # on the other
launch=
if [ "${NNODES:-1}" -gt 1 ]; then
    : "${MASTER:?is the address and a free port of the first machine, such as 10.0.0.1:6170}"
    : "${RANK:?is the number of this machine, from 0 to NNODES - 1}"
    launch="-m paddle.distributed.launch --master=$MASTER --nnodes=$NNODES --rank=$RANK"
fi
# $launch is meant to be split into words.
exec "${PYTHON:-python}" $launch "$(dirname "$0")/main_multi_gpu.py" \
    -cfg="${CFG:-configs/vit_base_patch16_224.yaml}" \
    -dataset=imagenet2012 \
    -data_path="${DATA_PATH:-/dataset/imagenet}" \
    -batch_size="${BATCH_SIZE:-128}" \
    -amp "$@"
