#!/usr/bin/env bash
# Makes .venv/peers, the environment of launch/comparison.sh's other programs: Python packages, node
# packages (where there is npm) and two small networks of GitHub. What is there already stays.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
peers=.venv/peers
make_environment $peers launch/comparison/requirements.txt 11 .venv/bin/python
if ! command -v npm > /dev/null; then
  echo "note: there is no npm, and so ESRGAN-medium and -thick are left out" >&2
elif [ ! -e $peers/node/node_modules/.package-lock.json ]; then
  npm install --prefix $peers/node --no-audit --no-fund --loglevel=error \
    @tensorflow/tfjs@4.11.0 @tensorflow/tfjs-backend-wasm@4.11.0 \
    @upscalerjs/esrgan-medium@1.0.0 @upscalerjs/esrgan-thick@1.0.0
fi
# Fetches one file of a commit; what fails is said, and that program is left out.
fetch() { # REPOSITORY COMMIT FILE
  local name=${3##*/} clone
  [ ! -e "$peers/models/$name" ] || return 0
  clone=$(mktemp -d)
  if git -C "$clone" init --quiet &&
    git -C "$clone" fetch --quiet --depth 1 "https://github.com/$1" "$2"; then
    mkdir -p $peers/models
    git -C "$clone" show "FETCH_HEAD:$3" > "$peers/models/$name.part"
    mv "$peers/models/$name.part" "$peers/models/$name"
  else
    echo "note: $1 cannot be fetched; give $peers/models/$name, its file $3" >&2
  fi
  rm -rf "$clone"
}
fetch Saafke/FSRCNN_Tensorflow 6a4812c4ef1c4f5947d79beafa32a05a6eb4a94d models/FSRCNN_x4.pb
fetch fannymonori/TF-ESPCN 5c628eca82028161a53e1265cc3a5b571ab8625f export/ESPCN_x4.pb
