#!/bin/sh
# launch.sh SCRIPT CONFIG BATCH_SIZE [argument ...]: run a main script on ImageNet.
#
# The run_*.sh of the model directories call it. From the environment: DATA_PATH, CFG,
# BATCH_SIZE, PYTHON, and PRETRAINED for evaluations. On several machines, start the same
# run_*_multi.sh on each:
#   MASTER=10.0.0.1:6170 NNODES=2 RANK=0 sh run_train_multi.sh      # on 10.0.0.1
#   MASTER=10.0.0.1:6170 NNODES=2 RANK=1 sh run_train_multi.sh      # on the other
script=$1 config=$2 batch_size=$3
shift 3
# Only what comes from the environment or from here is looked at: its names are told nowhere else.
data_path=${DATA_PATH:-/dataset/imagenet} pretrained=
for argument; do
    case $argument in
        -data_path* | --data_path* | -dataset* | --dataset*) data_path= ;;
        -pretrained=* | --pretrained=*) pretrained=${argument#*=} ;;
        -pretrained | --pretrained) pretrained= ;;
    esac
done
if [ -n "$data_path" ] && [ ! -e "$data_path" ]; then
    echo "error: there is no $data_path. Set DATA_PATH to the folder of ImageNet." >&2
    exit 2
fi
case $pretrained in
    ./*) if [ ! -e "$pretrained" ] && [ ! -e "$pretrained.pdparams" ]; then
        echo "error: there is no $pretrained. Set PRETRAINED to the weights, and CFG to the yaml" \
            "file that belongs to them." >&2
        exit 2
    fi ;;
esac
launch=
if [ "${NNODES:-1}" -gt 1 ]; then
    : "${MASTER:?is the address and a free port of the first machine, such as 10.0.0.1:6170}"
    : "${RANK:?is the number of this machine, from 0 to NNODES - 1}"
    launch="-m paddle.distributed.launch --master=$MASTER --nnodes=$NNODES --rank=$RANK"
fi
# $launch is meant to be split into words.
exec "${PYTHON:-python}" $launch "$script" \
    -cfg="${CFG:-$config}" \
    -dataset=imagenet2012 \
    -data_path="${DATA_PATH:-/dataset/imagenet}" \
    -batch_size="${BATCH_SIZE:-$batch_size}" \
    "$@"
