#!/usr/bin/env bash
# Makes the environment if it is missing, lints, and runs every test. Arguments go to pytest.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
# For tests/colab_test.py.
.venv/bin/python -m pip install --quiet --disable-pip-version-check nbclient==0.11.0 ipykernel==7.4.0
# The TPU's compiler, which needs no TPU, for tests/aot_report_test.py. In a folder of its own: where
# it is installed, every start of jax looks for a TPU.
libtpu=0.0.52
if [ ! -d ".venv/tpu_compiler/libtpu-$libtpu.dist-info" ]; then
  rm -rf .venv/tpu_compiler
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
    --target=.venv/tpu_compiler "libtpu==$libtpu" ||
    echo "libtpu cannot be installed here: the tests that need it are skipped"
fi
.venv/bin/ruff check .
.venv/bin/ruff format --check .
# A process for each core; the tests of a file stay together and share what they compile.
.venv/bin/python -m pytest --numprocesses=auto --dist=loadfile "$@"
