#!/usr/bin/env bash
# All that half an hour on a machine with a GPU can tell: whether training, resuming, evaluating and
# upscaling work there, and how fast the paper's networks are. One program at a time; each stage has a
# limit of its own, and a stage that fails does not stop the next.
#
#   bash launch/gpu_day.sh [OUT]     OUT: folder for what is found (default gpu_day)
#
# OUT/report.md has every figure, renewed after each stage, OUT/figures.json the same for programs,
# OUT/log.txt all that was printed, OUT/samples.png pictures, OUT/network.tar.gz.* the trained network.
# PYTHON: has jax with its GPU build, and what launch/gpu_day.py names where it is missing (default
# python3); TensorFlow and a network connection are not needed. PEER_PYTHON: has torch and diffusers, for the
# comparison. DATA: folder of photographs for the last training (default: drawn pictures).
# MINUTES: all that there is (default 28). TINY=1: small sizes, to try the script itself on a CPU.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec "${PYTHON:-python3}" launch/gpu_day.py "$@"
