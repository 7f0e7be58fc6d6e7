#!/usr/bin/env bash
# Trains on a Cloud TPU slice, all hosts of it, and goes on after preemptions.
#
#   NAME=sr3 ZONE=europe-west4-a TYPE=v3-128 bash launch/tpu_pod.sh create
#   NAME=sr3 ZONE=europe-west4-a TYPE=v3-128 bash launch/tpu_pod.sh run --config=configs/imagenet_64_256.py --workdir=gs://BUCKET/RUN ...
#   NAME=sr3 ZONE=europe-west4-a bash launch/tpu_pod.sh logs
#   NAME=sr3 ZONE=europe-west4-a bash launch/tpu_pod.sh delete
#
# create: asks for the slice, as a queued resource.
# run:    waits for the slice, sends it this checkout's commit, installs the versions of
#         requirements.txt, trains with the flags given, and watches. A preempted slice is asked
#         for anew, and the run goes on from its last checkpoint. Ends when training ends, with its
#         exit status. Ctrl-C ends the watching alone: the slice trains on, and `run` with the same
#         flags watches again.
# logs:   follows the log of the first host.
# delete: gives the slice back.
#
# NAME: of the queued resource and its node. ZONE, TYPE (v3-8, v3-128, v4-32, v5litepod-16 ...; not
# TPU7x, which Google Cloud lends by GKE alone: launch/gke.sh). VERSION: of the TPU's software
# (default: by TYPE). SPOT=1: preemptible, at a lower price.
# PROJECT: default gcloud's. DRY_RUN=1: prints the exact commands instead, and runs none.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/dry_run.sh"

action=${1:-}
[ $# -eq 0 ] || shift
case $action in create | run | logs | delete) ;; *) usage "'$action' is none of create, run, logs, delete" ;; esac
: "${NAME:=}" "${ZONE:=}" "${TYPE:=}" "${SPOT:=0}" "${DRY_RUN:=0}" "${POLL_SECONDS:=30}"
[ -n "$NAME" ] || usage "NAME is not set; give a name to the slice, as NAME=sr3"
[ -n "$ZONE" ] || usage "ZONE is not set; give the slice's zone, as ZONE=europe-west4-a"
if [ -z "$TYPE" ] && [[ $action = create || $action = run ]]; then
  usage "TYPE is not set; give the slice's type, as TYPE=v3-128"
fi
case $TYPE in
  tpu7* | v7*) usage "TYPE=$TYPE has no queued resources; GKE alone lends it: launch/gke.sh" ;;
  v5e-*) usage "TYPE=$TYPE: Google Cloud calls it v5litepod-${TYPE#v5e-}" ;;
  v5litepod-*) default_version=v2-alpha-tpuv5-lite ;;
  v5p-*) default_version=v2-alpha-tpuv5 ;;
  v6e-*) default_version=v2-alpha-tpuv6e ;;
  *) default_version=tpu-ubuntu2204-base ;;
esac
version=${VERSION:-$default_version}
where=(--zone="$ZONE" ${PROJECT:+--project="$PROJECT"})

on_hosts() { # WHICH COMMAND: on all hosts, or on the one of that number
  do_it gcloud compute tpus tpu-vm ssh "$NAME" "${where[@]}" --worker="$1" --command="$2"
}

create() {
  local spot=()
  [ "$SPOT" != 1 ] || spot=(--spot)
  do_it gcloud compute tpus queued-resources create "$NAME" --node-id="$NAME" "${where[@]}" \
    --accelerator-type="$TYPE" --runtime-version="$version" ${spot[@]+"${spot[@]}"}
}

delete() {
  do_it gcloud compute tpus queued-resources delete "$NAME" "${where[@]}" --force --quiet
}

state() { # of the queued resource; GONE where there is none, UNKNOWN where gcloud cannot say
  local found
  found=$(gcloud compute tpus queued-resources list "${where[@]}" \
    --filter="name~/$NAME\$" --format='value(state.state)') || { echo UNKNOWN; return; }
  echo "${found:-GONE}"
}

# Ends what is left of a job on all hosts; what trains saves first.
stop() {
  on_hosts all "test ! -s pid || kill -- -\$(cat pid) 2> /dev/null; rm -f pid; \
flock --timeout 300 sr3_jax.lock true"
}

install_and_start() { # FLAGS of the training command
  local commit jax archive flags loop start
  commit=$(git rev-parse HEAD)
  jax=$(sed -n 's/^jax==\([0-9.]*\).*/\1/p' requirements.txt)
  archive=${TMPDIR:-/tmp}/sr3_jax-$commit.tar.gz
  printf -v flags '%q ' "$@"
  if ! git diff --quiet HEAD; then
    echo "note: changes that are not committed are not sent; the slice gets $commit" >&2
  fi
  stop
  do_it git archive --format=tar.gz --prefix=sr3_jax/ --output="$archive" "$commit"
  do_it gcloud compute tpus tpu-vm scp "$archive" "$NAME:sr3_jax.tar.gz" "${where[@]}" --worker=all
  # uv brings a Python that the TPU's image need not have.
  on_hosts all "set -e; rm -f exit_status job; tar -xzf sr3_jax.tar.gz; cd sr3_jax; \
python3 -m pip install --quiet --user uv; ~/.local/bin/uv venv --quiet --allow-existing --python 3.12 .venv; \
~/.local/bin/uv pip install --quiet --python .venv/bin/python -r requirements.txt 'jax[tpu]==$jax'"
  # Where one host is lost the others end as well, and all start again. Done (0), failed for a
  # reason that would come back (1) and wrong use (2) are for good: `watch` then ends the others.
  loop="while :; do .venv/bin/python -m sr3_jax.main $flags; s=\$?; case \$s in 0|1|2) echo \$s \
> ~/exit_status; break;; esac; sleep 10; done"
  # Whoever wants to know whether it runs tries the lock, which its processes hold while one lives.
  # Taken before the command returns, so that no question comes between.
  start="setsid nohup bash -c $(printf %q "$loop") > ~/sr3_jax.log 2>&1 < /dev/null"
  on_hosts all "exec 9> sr3_jax.lock; flock --nonblock 9 || exit 1; echo $(job_of "$@") > job; \
cd sr3_jax; $start & echo \$! > ~/pid"
}

job_of() { # FLAGS: one word for them
  printf '%q ' "$@" | cksum | tr ' ' -
}

# What the hosts do: absent, running JOB, partly JOB (running, but not on all), or ended JOB STATUS;
# nothing where none answers. A failure on one is that of the job. Does not count on gcloud to hand
# on an exit status. On each host the lock comes first: a job writes its status before it lets go.
ask_hosts() {
  on_hosts all "flock --nonblock --conflict-exit-code 75 sr3_jax.lock true; if test \$? = 75; \
then echo sr3: running \$(cat job); elif test -s exit_status; then echo sr3: ended \$(cat job exit_status); \
else echo sr3: absent; fi" | sed -n 's/.*sr3: //p' | awk '
$1 == "ended" && $3 != 0 { failed = $0 }
{ line[$1] = $0; job[$1] = $2 }
END {
  if (failed) print failed
  else if (line["running"] && line["absent"]) print "partly", job["running"]
  else if (line["running"]) print line["running"]
  else print line["absent"] ? "absent" : line["ended"]
}'
}

watch() { # FLAGS
  local mine word job status is_first=1
  mine=$(job_of "$@")
  while :; do
    case $(state) in
      ACTIVE)
        read -r word job status < <(ask_hosts) || word=
        if [[ $word = running || $word = partly ]] && [ "$job" != "$mine" ]; then
          echo "error: $NAME trains with other flags; give those, or delete it first" >&2
          return 2
        fi
        # A job of other flags that has ended is done with; one that failed before this was called
        # gets a new try.
        if [ "$word" = ended ] && [ "$job" = "$mine" ] && [[ $is_first = 0 || $status = 0 ]]; then
          [ "$status" = 0 ] || stop || echo "what is left on other hosts could not be ended" >&2
          echo "training ended with status $status" >&2
          return "$status"
        fi
        if [[ $word = absent || $word = partly || $word = ended ]]; then
          # In a subshell, where the first command that fails ends it; a slice can go at any time.
          (set -e; install_and_start "$@") &
          wait $! || echo "the slice could not be set up; trying again" >&2
        fi
        [ -z "$word" ] || is_first=0
        ;;
      SUSPENDED | FAILED)
        echo "the slice was taken away or could not be had; asking for another" >&2
        delete && create || echo "gcloud refused; trying again" >&2
        ;;
      GONE) create || echo "gcloud refused; trying again" >&2 ;;
    esac
    sleep "$POLL_SECONDS"
  done
}

cd "$(dirname "${BASH_SOURCE[0]}")/.."
case $action in
  create) create ;;
  delete) delete ;;
  logs) on_hosts 0 "tail -n 100 -F sr3_jax.log" ;;
  run)
    [ $# -gt 0 ] || usage "run needs the training command's flags, as --config=... --workdir=gs://..."
    if [ "$DRY_RUN" = 1 ]; then
      echo "# once the state of $NAME is ACTIVE:"
      install_and_start "$@"
      echo "# whenever it is SUSPENDED:"
      delete
      create
    else
      watch "$@"
    fi
    ;;
esac
