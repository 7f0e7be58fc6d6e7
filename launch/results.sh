#!/usr/bin/env bash
# Makes docs/results.md's numbers and pictures anew: SR3 and its regression baseline, trained alike on
# BSD500's training photographs, and evaluated on its test photographs.
#   bash launch/results.sh BSDS500 [--config.KEY=VALUE ...]
# BSDS500: the folder with train/, val/ and test/. WORKDIR: where everything lands (default
# runs/results). Stopped, the same command goes on.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/dry_run.sh"
[ $# -gt 0 ] || usage "the folder is needed"
for part in train val test; do
  [ -d "$1/$part" ] || usage "there is no folder $1/$part"
done
data=$(realpath "$1")
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
workdir=${WORKDIR:-runs/results}
set_up_cpu
given=("${@:2}") # where it is empty, older shells take it for unset
run() { # METHOD FLAGS; takes the place of the shell
  exec .venv/bin/python -m sr3_jax.main --config="configs/bsds500_16_64.py:$1" \
    --config.data.path="$data/train" "${@:2}" ${given[@]+"${given[@]}"}
}

# Trained on train, the baseline's checkpoint chosen on val; both at once, a core each.
train() { # METHOD
  export JAX_NUM_CPU_DEVICES=1
  run "$1" --workdir="$workdir/$1" \
    --config.data.eval_path="$data/val" --config.evaluation.num_images=32
}
mkdir -p "$workdir/regression"
log=$workdir/regression/log.txt
train regression > "$log" 2>&1 &
baseline=$!
# However this ends, the baseline ends with it, and has saved.
trap 'kill $baseline 2> /dev/null && wait || true' EXIT
(train sr3)
echo "The regression baseline, whose training may take a little longer: tail -f $log"
wait $baseline || { status=$?; tail -n 3 "$log"; exit $status; } >&2
trap - EXIT

# Evaluated on test, as they are and moved to the nearest consistent image; in one report.
test=$workdir/test
outputs=
for consistent in False True; do
  for method in regression sr3; do
    name=$method
    [ $consistent = False ] || name=${method}_consistent
    mkdir -p "$test/$name"
    ln -sfn "../../$method/checkpoints" "$test/$name/checkpoints"
    (run $method --mode=evaluate --workdir="$test/$name" \
      --config.data.eval_path="$data/test" --config.sampling.consistent=$consistent)
    outputs+="${outputs:+,}$name=$test/$name/evaluation/images/$method"
  done
done
images=$test/sr3/evaluation/images
.venv/bin/python -m sr3_jax.main --mode=score --workdir="$workdir/report" \
  --reference="$images/reference" --low_resolution="$images/input" --outputs="$outputs"

.venv/bin/python -m launch.results_figures "$workdir"
echo "Look at $workdir/report/report.html, $workdir/figures.png and $workdir/pictures.jpg"
