#!/bin/sh
# build.sh PADDLE_FOLDER OUTPUT [half]: compile the fake accelerator against an installed Paddle.
#
# PADDLE_FOLDER: where the package lies. half: with kernels in half precision (Paddle 3 only).
set -e
here=$(cd "$(dirname "$0")" && pwd)
paddle=$1 output=$2
sources="$here/device.cc $here/collectives.cc"
[ "$3" = half ] && sources="$sources $here/half_precision.cc" half=-DFAKE_HALF
mkdir -p "$output"
libraries="-l:libpaddle.so -lphi_core -lcommon"
[ "$3" = half ] || libraries="-l:libpaddle.so -lcommon"
# shellcheck disable=SC2086  # lists of words
exec "${CXX:-g++}" -std=c++17 -O1 -w -fPIC -shared -DPADDLE_WITH_CUSTOM_DEVICE $half \
    -I"$here" -I"$paddle/include" -I"$paddle/include/third_party" $sources \
    -o "$output/libfake_device.so" -L"$paddle/base" -L"$paddle/libs" $libraries \
    -Wl,-rpath,"$paddle/base:$paddle/libs" -lpthread -lrt
