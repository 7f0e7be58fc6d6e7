#!/usr/bin/env bash
# Trains an ensemble downscaling on fields whose conditional distribution is known, and compares its
# CRPS with the best that a forecast can have (docs/science.md): a quarter of an hour on two CPU
# cores. Run it again and it goes on where it stopped.
# WORKDIR: where everything lands (default runs/science). Arguments go to the training command.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
workdir=${WORKDIR:-runs/science}
set_up_cpu
[ -f "$workdir/fields/test_z.nc" ] || .venv/bin/python -m launch.science make "$workdir/fields"
.venv/bin/python -m sr3_jax.main --config=configs/fields_8_32.py --workdir="$workdir" \
  --config.data.path="$workdir/fields/train.nc" --config.data.maps_path="$workdir/fields/train_z.nc" \
  --config.data.eval_path="$workdir/fields/test.nc" \
  --config.data.eval_maps_path="$workdir/fields/test_z.nc" "$@"
.venv/bin/python -m launch.science compare "$workdir"
echo "Look at $workdir/evaluation/samples.png and spectra.png"
