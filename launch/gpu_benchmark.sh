#!/usr/bin/env bash
# Times the 64 to 256 network on the GPUs of this machine, training step and 100-step sample in
# bfloat16, beside PyTorch's under torch.compile: docs/gpu.md. Needs no TensorFlow.
# PYTHON: has jax[cuda13], flax, optax and orbax (default python3). PEER_PYTHON: has torch and
# diffusers; without it PyTorch is left out. BATCH_SIZE: images a GPU (default 16).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
peer=()
[ -z "${PEER_PYTHON:-}" ] || peer=(--peer=diffusers --peer_python="$PEER_PYTHON")
gpus=$(nvidia-smi --list-gpus | wc -l)
# Both frameworks share the memory.
export XLA_PYTHON_CLIENT_PREALLOCATE=false
exec "${PYTHON:-python3}" -m sr3_jax.tools.benchmark --channels=128 --multipliers=1,2,4,4,8,8 \
  --num_blocks=3 --attention_levels=4 --image_size=256 --batch_size=$((gpus * ${BATCH_SIZE:-16})) \
  --dtype=bfloat16 --sample_steps=100 "${peer[@]}" --json=gpu_benchmark.json "$@"
