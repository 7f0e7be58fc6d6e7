#!/usr/bin/env bash
# Trains the network photos_4x, evaluates it, and writes it as a released network.
#   bash launch/photos_4x.sh PHOTOS [--config.KEY=VALUE ...]
# PHOTOS: a folder with train/, val/ and test/, or `tfds` for TFDS's caltech101 and tf_flowers, at
# their full size (docs/models.md). Beside a folder's photographs it is trained on 2200 pictures of
# letters, stripes and lines, which are drawn first. WORKDIR: where everything lands (default
# runs/photos_4x). Stopped, the same command goes on. With --steps=N it trains a finished network on
# to N steps.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/dry_run.sh"
[ $# -gt 0 ] || usage "the folder is needed"
if [ "$1" = tfds ]; then
  data=(--config.data.source=tfds
    "--config.data.path=caltech101:train+test[64:],tf_flowers:train[64:]"
    "--config.data.eval_path=caltech101:test[:64],tf_flowers:train[:64]"
    --config.data.crop_scale=0.5,1.0) # these are larger, and full of JPEG's blocks
  test=()
else
  for part in train val test; do
    [ -d "$1/$part" ] || usage "there is no folder $1/$part"
  done
  folder=$(realpath "$1")
  data=("--config.data.eval_path=$folder/val")
  test=("--config.data.eval_path=$folder/test")
fi
shift
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
workdir=${WORKDIR:-runs/photos_4x}
set_up_cpu
if [ -n "${folder:-}" ]; then
  mkdir -p "$workdir/pictures"
  ln -sfn "$folder/train" "$workdir/pictures/photographs"
  .venv/bin/python -m launch.drawn_pictures "$folder/train" "$workdir/pictures/drawn"
  data+=("--config.data.path=$workdir/pictures")
fi

.venv/bin/python -m sr3_jax.main --config=configs/photos_4x.py --workdir="$workdir" "${data[@]}" "$@"
# On the test photographs, where there are some.
if [ ${#test[@]} -gt 0 ]; then
  .venv/bin/python -m sr3_jax.main --mode=evaluate --workdir="$workdir" "${test[@]}"
fi
.venv/bin/python -m sr3_jax.main --mode=push --workdir="$workdir" --to="$workdir/released" --overwrite
echo "Upscale with it: $on_cpu.venv/bin/sr3 upscale --workdir=$workdir/released --input=PICTURE --output=FOLDER"
