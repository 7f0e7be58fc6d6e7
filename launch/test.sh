#!/usr/bin/env bash
# Makes the environment if it is missing, lints, and runs every test. Arguments go to pytest.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
# Tests start many processes. Without bytecode each would compile anew all that it imports.
unset PYTHONDONTWRITEBYTECODE
# nbclient and ipykernel are for tests/colab_test.py, scikit-learn for tests/generator_test.py,
# selenium for tests of pages, krippendorff for tests/study_test.py.
.venv/bin/python -m pip install --quiet --disable-pip-version-check \
  "$uv" nbclient==0.11.0 ipykernel==7.4.0 scikit-learn==1.9.1 selenium==4.51.0 krippendorff==0.9.0
# Installs into a folder of its own, unless it holds the same already. Where uv cannot (it does not
# read pip's settings), pip does.
install_apart() { # FOLDER ARGUMENT...
  local folder=$1
  shift
  if [ "$(cat "$folder/installed.txt" 2> /dev/null)" = "$*" ]; then
    return
  fi
  rm -rf "$folder" "$folder.partial"
  .venv/bin/uv pip install --quiet --python .venv/bin/python --target="$folder.partial" "$@" ||
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --upgrade \
      --target="$folder.partial" "$@" || return
  echo "$*" > "$folder.partial/installed.txt"
  mv "$folder.partial" "$folder"
}
# torch and torch-fidelity for tests/features_test.py, the GPU's compiler (which needs no GPU) for
# tests/gpu_compiler_test.py. Both want CUDA's libraries; 6 GB in all.
with_cuda=(torch-fidelity==0.4.0 torch==2.15.0 torchvision==0.29.2)
jax=$(sed -n 's/^jax==\([0-9.]*\).*/\1/p' requirements.txt)
if [ "$(uname -sm)" = "Linux x86_64" ]; then
  with_cuda+=("jax-cuda13-plugin[with-cuda]==$jax" "jax-cuda13-pjrt==$jax")
fi
{
  install_apart .venv/cuda --constraint=requirements.txt "${with_cuda[@]}" ||
    echo "torch and jax's CUDA plugin cannot be installed here: the tests that need them are skipped"
} & # beside what follows
# The TPU's compiler, which needs no TPU, for tests/aot_report_test.py. Where it is installed among
# the other packages, every start of jax looks for a TPU. The version that jax[tpu] of the pinned jax
# installs, as 0.0.42.*.
libtpu=$(.venv/bin/python -c 'import importlib.metadata as m, re
print(re.search(r"libtpu==([^ ;]+)", " ".join(m.requires("jax")))[1])')
install_apart .venv/tpu_compiler --no-deps "libtpu==$libtpu" ||
  echo "libtpu cannot be installed here: the tests that need it are skipped"
# What reads letters in tests/limits_test.py: 400 MB.
make_environment .venv/ocr launch/limits/requirements.txt 11 .venv/bin/python ||
  echo "rapidocr cannot be installed here: letters are not read in the test of the gallery of limits"
# A browser, for tests of pages: Debian's.
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
.venv/bin/ruff check .
.venv/bin/ruff format --check .
wait
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
      tests/{diffusion_schedule,training_run,inference,data_image_files,storage}_test.py
  else
    echo "there is no Python of 3.12 or newer here: the quick tests with it are skipped"
  fi
fi
