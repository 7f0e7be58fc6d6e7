#!/usr/bin/env bash
# Trains on TPU slices of a GKE cluster that has the JobSet controller: one pod for each host.
#
#   NAME=sr3 REPOSITORY=https://... TOPOLOGY=4x4 ACCELERATOR=tpu-v5-lite-podslice CHIPS=4 \
#     bash launch/gke.sh create --config=configs/imagenet_64_256.py --workdir=gs://BUCKET/RUN ...
#   NAME=sr3 bash launch/gke.sh logs
#   NAME=sr3 bash launch/gke.sh delete
#
# create: applies launch/gke_jobset.yaml with the values below and the training command's flags.
#         Pods that are preempted, or lose another one, start again and go on from the last
#         checkpoint; wrong use and failures that would come back end the job.
# logs:   follows the log of the first host.
# delete: ends the job.
#
# NAME: of the JobSet. REPOSITORY: the code's, for git clone; COMMIT: default this checkout's.
# ACCELERATOR, TOPOLOGY: of the node pool, as tpu-v5-lite-podslice and 4x4. CHIPS: of each host, as
# 4 (default). SLICES: how many (default 1). IMAGE: default python:3.12, which has git.
# DRY_RUN=1: prints the exact commands and the manifest instead.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
source "$here/dry_run.sh"

need() { # NAMES of variables
  local name
  for name; do
    [ -n "${!name:-}" ] || usage "$name is not set"
  done
}

manifest() { # FLAGS
  local chips=1 side hosts flags command
  for side in ${TOPOLOGY//x/ }; do chips=$((chips * side)); done
  if ((chips % CHIPS)); then
    usage "TOPOLOGY=$TOPOLOGY has $chips chips, which hosts of CHIPS=$CHIPS cannot share"
  fi
  hosts=$((chips / CHIPS))
  printf -v flags '%q ' "$@"
  # In YAML a text in single quotes ends with one, and two stand for one.
  command=${flags//\'/\'\'}
  sed -e "s|{NAME}|$NAME|g; s|{ACCELERATOR}|$ACCELERATOR|g; s|{TOPOLOGY}|$TOPOLOGY|g" \
    -e "s|{CHIPS}|$CHIPS|g; s|{HOSTS}|$hosts|g; s|{SLICES}|$SLICES|g; s|{IMAGE}|$IMAGE|g" \
    -e "s|{REPOSITORY}|$REPOSITORY|g; s|{COMMIT}|$COMMIT|g" "$here/gke_jobset.yaml" |
    FLAGS=$command awk '{
      at = index($0, "{FLAGS}")
      if (at) print substr($0, 1, at - 1) ENVIRON["FLAGS"] substr($0, at + 7)
      else print
    }'
}

action=${1:-}
[ $# -eq 0 ] || shift
case $action in
  create)
    need NAME REPOSITORY ACCELERATOR TOPOLOGY
    : "${CHIPS:=4}" "${SLICES:=1}" "${IMAGE:=python:3.12}" "${COMMIT:=$(git -C "$here" rev-parse HEAD)}"
    [ $# -gt 0 ] || usage "create needs the training command's flags, as --config=... --workdir=gs://..."
    text=$(manifest "$@")
    if [ "${DRY_RUN:-0}" = 1 ]; then
      echo "kubectl apply -f - <<'MANIFEST'"
      echo "$text"
      echo "MANIFEST"
    else
      kubectl apply -f - <<< "$text"
    fi
    ;;
  logs)
    need NAME
    do_it kubectl logs --follow --selector "jobset.sigs.k8s.io/jobset-name=$NAME,batch.kubernetes.io/job-completion-index=0"
    ;;
  delete)
    need NAME
    do_it kubectl delete jobset "$NAME"
    ;;
  *) usage "'$action' is none of create, logs, delete" ;;
esac
