#!/usr/bin/env bash
# Makes docs/results.md's numbers and pictures anew: SR3 and its regression baseline, trained alike on
# BSD500's training photographs, and evaluated on its test photographs.
#   bash launch/results.sh BSDS500     the folder with train/, val/ and test/
# WORKDIR: where everything lands (default runs/results). Run it again and it goes on where it stopped.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/dry_run.sh"
[ $# = 1 ] || usage "one folder is needed"
for part in train val test; do
  [ -d "$1/$part" ] || usage "there is no folder $1/$part"
done
data=$(realpath "$1")
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
.venv/bin/python -m pip install --quiet --disable-pip-version-check matplotlib==3.11.2
workdir=${WORKDIR:-runs/results}
malloc=glibc.malloc
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-$malloc.hugetlb=1:$malloc.arena_max=1:$malloc.mmap_max=0:$malloc.trim_threshold=40000000000}

run() { # METHOD FLAGS
  .venv/bin/python -m sr3_jax.main --config="configs/bsds500_16_64.py:$1" \
    --config.data.path="$data/train" "${@:2}"
}

# Trained on train, the baseline's checkpoint chosen on val; both at once, a core each.
for method in sr3 regression; do
  mkdir -p "$workdir/$method"
  JAX_NUM_CPU_DEVICES=1 run $method --workdir="$workdir/$method" \
    --config.data.eval_path="$data/val" --config.evaluation.num_images=32 \
    > "$workdir/$method/log.txt" 2>&1 &
done
wait %1
wait %2

# Evaluated on test, as they are and moved to the nearest consistent image.
outputs=
for consistent in False True; do
  for method in regression sr3; do
    name=$method
    if [ $consistent = True ]; then
      name=${method}_consistent
      mkdir -p "$workdir/$name"
      ln -sfn "../$method/checkpoints" "$workdir/$name/checkpoints"
    fi
    run $method --mode=evaluate --workdir="$workdir/$name" \
      --config.data.eval_path="$data/test" --config.sampling.consistent=$consistent
    outputs+="${outputs:+,}$name=$workdir/$name/evaluation/images/$method"
  done
done
images="$workdir/sr3/evaluation/images"
.venv/bin/python -m sr3_jax.main --mode=score --workdir="$workdir/report" \
  --reference="$images/reference" --low_resolution="$images/input" --outputs="$outputs"

# Curves of the trainings, and power spectra of the test images.
.venv/bin/python - "$workdir" <<'PYTHON'
import pathlib, sys
import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

root = pathlib.Path(sys.argv[1])
figure = Figure(figsize=(11, 3.4), layout="constrained")
axes = figure.subplots(1, 3)
for method in ("regression", "sr3"):
    events = EventAccumulator(str(root / method), {"tensors": 0})
    events.Reload()
    for axis, tag in zip(axes, ("loss", "validation_loss")):
        found = events.Tensors(tag)
        values = np.array([np.frombuffer(e.tensor_proto.tensor_content, np.float32) for e in found])
        # The two losses are of other things: L1 of eps, and the squared error of the image.
        axis.plot([e.step for e in found], values / values[-1], label=method)
        axis.set(title=f"{tag}, over its last", xlabel="step", yscale="log")
        axis.legend()

def spectrum(folder):
    """Mean power of luminance by distance from zero frequency, in cycles a pixel."""
    total = 0.0
    for path in sorted(folder.glob("*.png")):
        image = np.asarray(Image.open(path).convert("L"), float) / 255
        window = np.outer(*[np.hanning(n) for n in image.shape])
        total = total + np.abs(np.fft.fft2((image - image.mean()) * window)) ** 2
    rows, columns = (np.fft.fftfreq(n) for n in total.shape)
    radius = np.hypot(rows[:, None], columns)
    bins = np.minimum(radius * 64, 32).astype(int)
    power = np.bincount(bins.ravel(), total.ravel()) / np.bincount(bins.ravel())
    return (np.arange(32) + 0.5) / 64, power[:32]

for name in ("reference", "regression", "sr3"):
    run = "sr3" if name == "reference" else name
    axes[2].plot(*spectrum(root / run / "evaluation" / "images" / name), label=name)
axes[2].set(title="power spectrum, test images", xlabel="cycles a pixel", yscale="log")
axes[2].legend()
figure.savefig(root / "figures.png", dpi=100)
PYTHON
echo "Look at $workdir/report/report.html and $workdir/figures.png"
