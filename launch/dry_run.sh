# Sourced by the launchers of cloud machines.

# Prints the comment at the head of the script.
explain() {
  sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p;}' "$0"
}

# The same, then what is wrong; ends with status 2.
usage() {
  explain >&2
  echo "error: $1" >&2
  exit 2
}

for argument in "$@"; do
  case $argument in
    -h | --help)
      explain
      exit
      ;;
  esac
done

# Runs a command, or (DRY_RUN=1) prints it so that a shell would take it.
do_it() {
  if [ "${DRY_RUN:-0}" = 1 ]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}
