# Sourced by the other scripts: makes .venv with the pinned requirements where it is missing.
# PYTHON names the interpreter to make it with (3.11 or 3.12).
cd "$(dirname "${BASH_SOURCE[0]}")/.."

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3 python3.12 python3.11}; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' \
        2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "error: no Python 3.11 or 3.12 found (tried: ${PYTHON:-python3 python3.12 python3.11});" \
    "name one with PYTHON=..." >&2
  return 1
}

# The mark holds what was installed, so that a changed requirements.txt is installed again and an
# interrupted installation is not taken for a whole one.
make_environment() {
  local mark=.venv/installed-requirements.txt
  if cmp -s requirements.txt "$mark"; then
    return
  fi
  local python
  python=$(find_python)
  echo "Installing into .venv with $("$python" --version) ..."
  [ -x .venv/bin/python ] || "$python" -m venv .venv
  # Most modules are never imported; those that are, Python compiles when it first does.
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-compile -r requirements.txt
  cp requirements.txt "$mark"
}

# Settings for CPUs (docs/cpu.md): one device for each core, up to the batch's largest power of two,
# and memory that is kept instead of given back after every step.
set_up_cpu() {
  local cores malloc=glibc.malloc
  cores=$(getconf _NPROCESSORS_ONLN)
  export JAX_NUM_CPU_DEVICES=${JAX_NUM_CPU_DEVICES:-$((cores >= 8 ? 8 : cores >= 4 ? 4 : cores >= 2 ? 2 : 1))}
  # Without a package for accelerators in .venv, those that the machine may have are not meant.
  compgen -G '.venv/lib/python3*/site-packages/*jax_cuda*' > /dev/null ||
    compgen -G '.venv/lib/python3*/site-packages/libtpu' > /dev/null ||
    export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
  export GLIBC_TUNABLES=${GLIBC_TUNABLES:-$malloc.hugetlb=1:$malloc.arena_max=1:$malloc.mmap_max=0:$malloc.trim_threshold=40000000000}
}

make_environment
# Compiled programs are kept, so that a second run starts at once.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$PWD/.jax_cache}"
