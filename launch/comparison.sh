#!/usr/bin/env bash
# Makes docs/comparison.md's tables and pictures: programs that others made, beside networks of ours,
# on the same pictures at a quarter of their size.
#   bash launch/comparison.sh PHOTOGRAPHS [CLASSES] [--networks=NAME=WORKDIR,...] [--only=NAME,...]
#     [--images=N[,M]] [--samples=N] [--steps=N] [--threads=N] [--no_features]
# PHOTOGRAPHS: a folder of pictures, such as BSDS500's `test`. CLASSES: a folder of one picture of
# each ImageNet class, as https://github.com/EliSchwartz/imagenet-sample-images has them.
# --networks: workdirs of training runs, or released networks; --help explains the others.
# WORKDIR: where everything lands (default runs/comparison). The other programs are installed into
# .venv/peers. Stopped, the same command goes on.
set -euo pipefail
from=$PWD
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
[ "$from" = "$PWD" ] || echo "note: relative paths are within $PWD" >&2
set_up_cpu
# One picture at a time, on all cores.
export JAX_NUM_CPU_DEVICES=1
exec .venv/bin/python -m launch.comparison "$@"
