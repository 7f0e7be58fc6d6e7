#!/usr/bin/env bash
# Trains a class-conditional network on scikit-learn's 8x8 digits, draws 1000 digits, and has a
# classifier that was trained on real ones say what they are: about ten minutes on two CPU cores.
# Run it again and it goes on where it stopped.
# WORKDIR: where everything lands (default runs/digits). Arguments go to the training command.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
workdir=${WORKDIR:-runs/digits}
set_up_cpu
.venv/bin/python -m pip install --quiet --disable-pip-version-check scikit-learn==1.9.1
[ -d "$workdir/images/test" ] || .venv/bin/python -m launch.digits write "$workdir/images"
.venv/bin/python -m sr3_jax.main --config=configs/digits_8.py --workdir="$workdir" \
  --config.data.path="$workdir/images/train" --config.data.eval_path="$workdir/images/test" "$@"
.venv/bin/python -m sr3_jax.main --mode=generate --workdir="$workdir" --num_images=1000
.venv/bin/python -m launch.digits judge "$workdir/images" "$workdir/generated"
echo "Look at $workdir/generated/grid.png, and $workdir/evaluation/neighbours.png for copies"
