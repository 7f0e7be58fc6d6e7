#!/usr/bin/env bash
# Makes the documentation as a site: README, docs/ and a reference of the package.
#   bash launch/docs.sh [FOLDER]     default build/docs; begin with FOLDER/index.html
set -euo pipefail
folder=$(realpath -m "${1:-$(dirname "${BASH_SOURCE[0]}")/../build/docs}")
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
JAX_PLATFORMS=cpu .venv/bin/python -m launch.docs "$folder"
echo "$folder/index.html"
