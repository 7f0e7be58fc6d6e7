#!/usr/bin/env bash
# Upscales a folder, again and again until nothing is missing that could be made: for machines that
# are preempted. On a TPU VM or any other machine, with all its devices:
#
#   bash launch/upscale_job.sh WORKDIR INPUT OUTPUT [FLAGS]
#
# On the head of a Ray cluster (launch/ray_cluster.yaml) it uses all hosts of the cluster. FLAGS go to
# `--mode=upscale`. DRY_RUN=1 prints the command instead.
set -euo pipefail
if [ $# -lt 3 ]; then
  echo "usage: bash launch/upscale_job.sh WORKDIR INPUT OUTPUT [FLAGS]" >&2
  exit 2
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-}
if [ -z "$python" ]; then
  for python in .venv/bin/python "$HOME/sr3/bin/python" python3; do
    command -v "$python" > /dev/null && break
  done
fi
command=("$python" -m sr3_jax.main --mode=upscale "--workdir=$1" "--input=$2" "--output=$3")
# Where this machine belongs to a cluster, the cluster does it.
if [ -e "$HOME/ray_bootstrap_config.yaml" ]; then
  command+=(--engine=ray --ray_address=auto)
  export RAY_AUTH_MODE=${RAY_AUTH_MODE:-token}
fi
command+=("${@:4}")
if [ "${DRY_RUN:-}" = 1 ]; then
  printf '%q ' "${command[@]}"
  echo
  exit
fi
until "${command[@]}"; do
  status=$?
  # 75: it was asked to stop, or a process of the job was lost. 137 and 143: killed outright.
  case $status in
    75 | 137 | 143) echo "ended with $status; going on in 10 s" >&2 ;;
    *) exit "$status" ;;
  esac
  sleep 10
done
