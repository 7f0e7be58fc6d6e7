#!/usr/bin/env bash
# Renews the pinned versions, from the ranges in setup.py, and prints what changed. Run the tests after.
#
#   bash launch/pins.sh                  all packages, but jax and what belongs to it
#   bash launch/pins.sh optax==0.2.8 ... these as well (jax from 0.11 on needs Python 3.12: raise the
#                                        least Python below and in setup.py with it)
#
# requirements.txt          what the tests pass with, for Python 3.11 to 3.14
# requirements-newest.txt   the newest of everything, for the newest Python; quick tests pass with it
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ -x .venv/uv/bin/uv ] || { python3 -m venv .venv/uv && .venv/uv/bin/pip install --quiet uv; }
# Their versions belong together; the paper's numbers are compared with those of the same jax.
held=(jax jaxlib flax optax orbax-checkpoint)

compile() { # FILE HEAD OPTIONS...: the old file stays where that fails
  local file=$1 head=$2
  shift 2
  cp "$file" "$file.before" 2> /dev/null || : > "$file.before"
  .venv/uv/bin/uv pip compile --quiet --universal --fork-strategy fewest --no-annotate --no-header \
    "$@" setup.py -o "$file.partial" || { rm -f "$file.partial" "$file.before"; exit 1; }
  printf '# %s Made by launch/pins.sh.\n' "$head" | cat - "$file.partial" > "$file"
  rm "$file.partial"
  echo "$file:"
  diff --unchanged-line-format= --old-line-format='  - %L' --new-line-format='  + %L' \
    <(grep -v '^#' "$file.before") <(grep -v '^#' "$file") && echo "  nothing changed"
  rm "$file.before"
}

printf '%s\n' "$@" | grep . > .venv/pins.txt || : > .venv/pins.txt
for name in "${held[@]}"; do
  grep -q "^$name==" .venv/pins.txt || sed -n "s/^\($name==[^ ;]*\).*/\1/p" requirements.txt >> .venv/pins.txt
done
compile requirements.txt "What the tests pass with, for Python 3.11 to 3.14." \
  --python-version 3.11 --extra dev --constraint .venv/pins.txt
compile requirements-newest.txt "The newest of everything, for Python 3.12 and newer; quick tests pass with it." \
  --python-version 3.12 --extra test
