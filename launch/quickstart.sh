#!/usr/bin/env bash
# Trains a small SR3 on real photographs, evaluates it and upscales a photograph with it: about
# ten minutes on two CPU cores. Run it again and it goes on where it stopped.
# WORKDIR: where everything lands (default runs/quickstart). Arguments go to the training command,
# such as --config.train.num_steps=4000.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
workdir=${WORKDIR:-runs/quickstart}

set_up_cpu

# Trains, and evaluates at the end.
.venv/bin/python -m sr3_jax.main --config=configs/quickstart.py --workdir="$workdir" "$@"

# A photograph that training never saw (scikit-image's cat), made small for the purpose.
mkdir -p "$workdir/upscale/input"
.venv/bin/python - "$workdir/upscale/input/cat.png" <<'PYTHON'
import sys
import skimage.data
from PIL import Image
cat = Image.fromarray(skimage.data.chelsea())
cat.resize((cat.width // 4, cat.height // 4), Image.BICUBIC).save(sys.argv[1])
PYTHON
.venv/bin/python -m sr3_jax.main --mode=upscale --workdir="$workdir" \
  --input="$workdir/upscale/input" --output="$workdir/upscale/output" --overwrite

echo
echo "Look at:"
echo "  $workdir/evaluation/report.html      figures, worst and best images; opens in a browser"
echo "  $workdir/evaluation/samples.png      input, bicubic, result and reference, side by side"
[ ! -e "$workdir/evaluation/refinement.png" ] ||
  echo "  $workdir/evaluation/refinement.png   how SR3 gets from noise to an image"
echo "  $workdir/upscale/output/cat.png      upscaled from $workdir/upscale/input/cat.png"
echo "Upscale your own picture:"
echo "  $on_cpu.venv/bin/python -m sr3_jax.main --mode=upscale --workdir=$workdir --input=PICTURE --output=FOLDER"
