# Sourced by the other scripts: makes .venv with the pinned requirements where it is missing.
# PYTHON names the interpreter to make it with (3.11 to 3.14).
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Prints the first Python of those given whose version is within 3.LEAST to 3.14. Those of pyenv that
# are not in use are found, too.
find_python() { # LEAST CANDIDATE...
  local least=$1 name candidate
  shift
  for name in "$@"; do
    for candidate in "$name" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/*/bin/"$name"; do
      if "$candidate" -c "import sys; sys.exit(not (3, $least) <= sys.version_info[:2] <= (3, 14))" \
          2>/dev/null; then
        echo "$candidate"
        return
      fi
    done
  done
  echo "error: no Python of 3.$least to 3.14 found (tried: $*); name one with PYTHON=..." >&2
  return 1
}

uv=uv==0.13.9 # installs several times as fast as pip

# Makes an environment with the pinned requirements. The mark holds what was installed, so that a
# changed file is installed again and an interrupted installation is not taken for a whole one.
make_environment() { # FOLDER REQUIREMENTS LEAST CANDIDATE...
  local folder=$1 requirements=$2 python
  shift 2
  if cmp -s "$requirements" "$folder/installed-requirements.txt"; then
    return
  fi
  python=$(find_python "$@") || return
  echo "Installing into $folder with $("$python" --version) ..."
  [ -x "$folder/bin/python" ] || "$python" -m venv "$folder"
  # Where uv cannot install (it does not read pip's settings), pip does. Most modules are never
  # imported; those that are, Python compiles when it first does.
  { "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "$uv" &&
    "$folder/bin/python" -m uv pip install --quiet --python "$folder/bin/python" -r "$requirements"; } ||
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile \
      -r "$requirements" || return
  cp "$requirements" "$folder/installed-requirements.txt"
}

# Settings for CPUs (docs/cpu.md): one device for each core, up to the batch's largest power of two,
# and memory that is kept instead of given back after every step.
# Sets on_cpu to the prefix of printed commands: where there is a GPU or TPU that is not used, they
# need JAX_PLATFORMS=cpu as well.
set_up_cpu() {
  on_cpu=
  local cores malloc=glibc.malloc
  cores=$(getconf _NPROCESSORS_ONLN)
  export JAX_NUM_CPU_DEVICES=${JAX_NUM_CPU_DEVICES:-$((cores >= 8 ? 8 : cores >= 4 ? 4 : cores >= 2 ? 2 : 1))}
  # Without a package for accelerators in .venv, those that the machine may have are not meant.
  compgen -G '.venv/lib/python3*/site-packages/*jax_cuda*' > /dev/null ||
    compgen -G '.venv/lib/python3*/site-packages/libtpu' > /dev/null || {
    export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
    if compgen -G '/dev/nvidia[0-9]*' > /dev/null || compgen -G '/dev/accel*' > /dev/null; then
      echo "note: this runs on the CPU, though the machine has a GPU or a TPU; docs/hardware.md says" \
        "which package .venv needs to use it" >&2
      on_cpu="JAX_PLATFORMS=cpu "
    fi
  }
  export GLIBC_TUNABLES=${GLIBC_TUNABLES:-$malloc.hugetlb=1:$malloc.arena_max=1:$malloc.mmap_max=0:$malloc.trim_threshold=40000000000}
}

make_environment .venv requirements.txt 11 \
  ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11} || exit
# The package itself, editable, and with it the command .venv/bin/sr3.
[ -x .venv/bin/sr3 ] || .venv/bin/python -m pip install --quiet --disable-pip-version-check \
  --no-deps --editable . || exit
# Compiled programs are kept, so that a second run starts at once.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$PWD/.jax_cache}"
