#!/usr/bin/env bash
# Makes docs/limits.md's tables and picture: letters, lines, grids, windows, hair and glasses, shrunk
# four times and upscaled by bicubic and by networks of this project.
#   bash launch/limits.sh [FOLDER...] [--networks=NAME=WORKDIR,...] [--steps=NAME=CALLS,...]
#     [--threads=N] [--tiny] [--no_ocr]
# FOLDER: where the photographs of launch/limits/subjects.py are, such as BSDS500 (with train/, val/
# and test/); what is in none is left out and named. --networks: workdirs of training runs, or released
# networks; --help explains the others. WORKDIR: where everything lands (default runs/limits). What
# reads letters is installed into .venv/ocr. Stopped, the same command goes on.
set -euo pipefail
from=$PWD
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
[ "$from" = "$PWD" ] || echo "note: relative paths are within $PWD" >&2
set_up_cpu
# One picture at a time, on all cores.
export JAX_NUM_CPU_DEVICES=1
case " $* " in
  *" --no_ocr "* | *" --help "* | *" -h "*) ;;
  *)
    make_environment .venv/ocr launch/limits/requirements.txt 11 .venv/bin/python ||
      echo "note: what reads letters cannot be installed, so letters are not read" >&2
    ;;
esac
exec .venv/bin/python -m launch.limits "$@"
