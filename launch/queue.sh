#!/usr/bin/env bash
# Trains the runs of a list one after the other, while the machine serves others:
#
#   launch/queue.sh LIST
#
# Each line of the file LIST holds the arguments of one `python -m jaxr18.main`,
# quoted as in a shell; empty lines and those that begin with # are passed over:
#
#   --config=configs/prune_quant.py
#   --config=configs/kd_quant.py --workdir=runs/kd_quant_1 --config.seed=1
#
# Runs have the lowest priority (PRIORITY=normal leaves it). A finished run ends
# at once, so the same command goes on with the first that is not finished; lines
# may be added at any time. A run that was killed is started again, ATTEMPTS
# times in all (10 by default), and goes on from its last checkpoint. One that
# fails is told at the end, and the others go on. SIGTERM or Ctrl-C saves the
# run that is trained, and ends. PYTHON names another interpreter.
#
# Exit status: 0 when all are finished, or stopped and saved; 1 when one failed;
# 2 when LIST cannot be read.
set -uo pipefail

list=${1:-}
attempts=${ATTEMPTS:-10}
if [[ $# != 1 || ! -f $list || ! -r $list ]]; then
  echo "queue.sh: one file of runs is expected, a line each with the arguments" \
    "of 'python -m jaxr18.main'; got: ${*:-nothing}" >&2
  exit 2
fi
if ! [[ $attempts =~ ^[1-9][0-9]{0,3}$ ]]; then
  echo "queue.sh: ATTEMPTS (=$attempts) must be a whole number from 1 to 9999" >&2
  exit 2
fi
first=("${PYTHON:-python}" -m jaxr18.main)
if [[ ${PRIORITY:-idle} == idle ]]; then
  # Where shells are scheduled as groups, nice counts within a group alone.
  if [[ -w /proc/self/autogroup ]]; then
    echo 19 2>/dev/null >/proc/self/autogroup || true
  fi
  first=(nice -n 19 "${first[@]}")
  if chrt --idle 0 true 2>/dev/null; then
    first=(chrt --idle 0 "${first[@]}")
  fi
fi

child=
stopped=
trap 'stopped=yes; [[ $child ]] && kill -TERM "$child" 2>/dev/null' TERM INT HUP
# In a group of its own, so that a terminal's Ctrl-C comes once, from here.
set -m

declare -A tried
failed=()
while [[ ! $stopped ]]; do
  next=
  while IFS= read -r line || [[ $line ]]; do
    if [[ $line =~ ^[[:space:]]*(#|$) || ${tried[$line]:-} ]]; then
      continue
    fi
    next=$line
    break
  done <"$list"
  [[ $next ]] || break
  tried[$next]=yes
  if ! arguments=$(xargs -n 1 printf '%s\n' <<<"$next" 2>/dev/null); then
    echo "queue.sh: a quote is not closed in: $next" >&2
    failed+=("$next")
    continue
  fi
  mapfile -t arguments <<<"$arguments"
  echo "queue.sh: $next" >&2
  for ((attempt = 1; attempt <= attempts; attempt++)); do
    "${first[@]}" "${arguments[@]}" </dev/null &
    child=$!
    status=0
    wait "$child" || status=$?
    while kill -0 "$child" 2>/dev/null; do # a signal ended `wait`, not the run
      status=0
      wait "$child" || status=$?
    done
    child=
    if ((status <= 128)) || [[ $stopped ]]; then
      break
    fi
    echo "queue.sh: it was ended by signal $((status - 128)) and goes on from" \
      "its last checkpoint ($attempt of $attempts)" >&2
  done
  if ((status)) && [[ ! $stopped ]]; then
    failed+=("status $status: $next")
  fi
done

if ((${#failed[@]})); then
  echo "queue.sh: not finished:" >&2
  printf '  %s\n' "${failed[@]}" >&2
  exit 1
fi
