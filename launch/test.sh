#!/usr/bin/env bash
# Makes the environment if it is missing, lints, and runs every test. Arguments go to pytest.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
.venv/bin/ruff check .
.venv/bin/ruff format --check .
# A process for each core; the tests of a file stay together and share what they compile.
.venv/bin/python -m pytest --numprocesses=auto --dist=loadfile "$@"
