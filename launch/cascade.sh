#!/usr/bin/env bash
# Trains the three networks of a small cascade of photographs (16x16 from nothing, 16 to 32, 32 to
# 64), and draws 64 photographs with it: an hour and a half on two CPU cores. Stopped, it goes on.
#   bash launch/cascade.sh [IMAGES] [--config.KEY=VALUE ...]
# IMAGES: a folder of photographs; without, the seven of scikit-image, which are few. Further
# arguments go to each training. WORKDIR: where everything lands (default runs/cascade).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
workdir=${WORKDIR:-runs/cascade}
set_up_cpu
data=()
if [ $# -gt 0 ] && [ "${1#--}" = "$1" ]; then
  data=(--config.data.source=folder --config.data.path="$1")
  shift
fi
flags=()
number=0
for stage in base 16_32 32_64; do
  number=$((number + 1))
  .venv/bin/python -m sr3_jax.main --config="configs/photos_stages.py:$stage" \
    --workdir="$workdir/$stage" ${data[@]+"${data[@]}"} "$@"
  flags+=("--config.stage_$number.workdir=$workdir/$stage")
done
.venv/bin/python -m sr3_jax.main --mode=generate --config=configs/cascade_photos_64.py \
  --num_images=64 --output="$workdir/generated" "${flags[@]}"
echo "Look at $workdir/generated/grid.png and stages.png, and $workdir/base/evaluation/neighbours.png"
