#!/usr/bin/env bash
# Makes the environment if it is missing, lints, and runs every test. Arguments go to pytest.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
# For tests/colab_test.py.
.venv/bin/python -m pip install --quiet --disable-pip-version-check nbclient==0.11.0 ipykernel==7.4.0
# A classifier of digits, for tests/generator_test.py.
.venv/bin/python -m pip install --quiet --disable-pip-version-check scikit-learn==1.9.1
# A browser that opens the report of an evaluation, for tests/report_browser_test.py: Debian's.
.venv/bin/python -m pip install --quiet --disable-pip-version-check selenium==4.51.0
if ! { command -v chromium && command -v chromedriver; } > /dev/null; then
  install_chromium() {
    [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null && apt-get update -qq &&
      DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
        chromium chromium-driver > /dev/null
  }
  install_chromium ||
    echo "chromium cannot be installed here (that takes root and Debian): its tests are skipped"
fi
# A real sshd for tests/launch_test.py: unpacked, not installed, so that none is left running.
if ! command -v /usr/sbin/sshd > /dev/null && [ ! -d .venv/sshd ]; then
  fetch_sshd() (
    rm -rf .venv/sshd.partial && mkdir -p .venv/sshd.partial && cd .venv/sshd.partial || return
    apt-get download -qq openssh-server libwrap0 libnss-wrapper 2> /dev/null &&
      for package in *.deb; do dpkg -x "$package" . || return; done && rm ./*.deb
  )
  fetch_sshd && mv .venv/sshd.partial .venv/sshd ||
    echo "sshd cannot be fetched here (that takes Debian's apt and its lists): its test is skipped"
fi
# The TPU's compiler, which needs no TPU, for tests/aot_report_test.py. In a folder of its own: where
# it is installed, every start of jax looks for a TPU. The version that jax[tpu] of the pinned jax
# installs, as 0.0.42.*.
libtpu=$(.venv/bin/python -c 'import importlib.metadata as m, re
print(re.search(r"libtpu==([^ ;]+)", " ".join(m.requires("jax")))[1])')
if ! compgen -G ".venv/tpu_compiler/libtpu-$libtpu.dist-info" > /dev/null; then
  rm -rf .venv/tpu_compiler
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
    --target=.venv/tpu_compiler "libtpu==$libtpu" ||
    echo "libtpu cannot be installed here: the tests that need it are skipped"
fi
# The GPU's compiler, which needs no GPU, for tests/gpu_compiler_test.py: 3.8 GB, most of it cuDNN's
# and cuBLAS's libraries, which jax looks for before it compiles.
jax=$(sed -n 's/^jax==\([0-9.]*\).*/\1/p' requirements.txt)
if [ "$(uname -sm)" = "Linux x86_64" ] && [ ! -d ".venv/gpu_compiler/jax_cuda13_plugin-$jax.dist-info" ]; then
  rm -rf .venv/gpu_compiler .venv/gpu_compiler.partial
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-compile \
    --target=.venv/gpu_compiler.partial "jax-cuda13-plugin[with-cuda]==$jax" "jax-cuda13-pjrt==$jax" &&
    mv .venv/gpu_compiler.partial .venv/gpu_compiler ||
    echo "jax's CUDA plugin cannot be installed here: the tests that need it are skipped"
fi
# torch and torch-fidelity, for tests/features_test.py. In a folder of its own, too: no other part
# needs torch, which on Linux brings CUDA's libraries, 5.4 GB in all. With PyTorch's own index,
# PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu, pip finds builds without them.
torch_fidelity=0.4.0 torch=2.15.0 torchvision=0.29.2
if [ ! -d ".venv/torch_fidelity/torch_fidelity-$torch_fidelity.dist-info" ]; then
  rm -rf .venv/torch_fidelity .venv/torch_fidelity.partial
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-compile \
    --target=.venv/torch_fidelity.partial --constraint=requirements.txt \
    "torch-fidelity==$torch_fidelity" "torch==$torch" "torchvision==$torchvision" &&
    mv .venv/torch_fidelity.partial .venv/torch_fidelity ||
    echo "torch-fidelity cannot be installed here: the tests that need it are skipped"
fi
.venv/bin/ruff check .
.venv/bin/ruff format --check .
# A process for each core; the tests of a file stay together and share what they compile, and those
# that take longest come first (tests/conftest.py). NumPy's threads would only wait for each other.
export OPENBLAS_NUM_THREADS=1
.venv/bin/python -m pytest --numprocesses=auto --dist=loadfile --no-loadscope-reorder "$@"

# Quick tests with the newest Python that is there, and the newest jax (requirements-newest.txt).
if [ $# -eq 0 ]; then
  if make_environment .venv/newest requirements-newest.txt 12 python3.14 python3.13 python3.12; then
    echo "quick tests with $(.venv/newest/bin/python --version), jax \
$(.venv/newest/bin/python -c 'import jax; print(jax.__version__)')"
    JAX_COMPILATION_CACHE_DIR="$JAX_COMPILATION_CACHE_DIR-newest" .venv/newest/bin/python -m pytest \
      --numprocesses=auto --dist=loadfile \
      tests/{diffusion_schedule,training_run,inference,data_picture,storage}_test.py
  else
    echo "there is no Python of 3.12 or newer here: the quick tests with it are skipped"
  fi
fi
