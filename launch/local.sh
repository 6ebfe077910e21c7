#!/usr/bin/env bash
# Starts a run on this machine, in one process or in several that train one
# network together:
#
#   launch/local.sh --config=configs/kd_quant.py
#   launch/local.sh --processes=2 --config=configs/kd_quant.py --workdir=runs/x
#
# Several processes are for several GPUs. On the CPUs of one host each gets cores
# of its own; one process, which has all cores anyway, is still some 10% faster.
#
# All arguments but --processes (or NPROC, 1 by default) go to
# `python -m jaxr18.main`; PYTHON names another interpreter. Several processes
# are joined as srun's are, by Slurm's variables, the i-th with the i-th GPU.
#
# SIGTERM and Ctrl-C reach every process: all is saved, and the status is 0. If
# one process fails or is killed, the others end too, of themselves or, after
# PATIENCE seconds (20 by default), by force; then the status is its own. The
# same command goes on from the last checkpoint.
set -euo pipefail

processes=${NPROC:-1}
patience=${PATIENCE:-20}
arguments=()
for argument in "$@"; do
  case $argument in
    --processes=*) processes=${argument#*=} ;;
    *) arguments+=("$argument") ;;
  esac
done
for number in "$processes" "$patience"; do
  if ! [[ $number =~ ^[0-9]{1,4}$ ]] || ((10#$number < 1)); then
    echo "local.sh: --processes (=$processes) and PATIENCE (=$patience) must" \
      "be whole numbers from 1 to 9999" >&2
    exit 2
  fi
done
processes=$((10#$processes)) patience=$((10#$patience))

# cores: the numbers of the cores that are allowed; nothing where taskset lacks.
cores() {
  command -v taskset >/dev/null || return 0
  taskset -cp $$ | sed 's/.*: //' | tr , '\n' |
    while IFS=- read -r first last; do seq "$first" "${last:-$first}"; done
}

command=("${PYTHON:-python}" -m jaxr18.main ${arguments[@]+"${arguments[@]}"})
if ((processes == 1)); then
  exec "${command[@]}"
fi

# JAX makes the coordinator's port of the job's number: 61440 + number % 4096.
for _ in {1..20}; do
  job=$((RANDOM % 4096))
  if ! (: <"/dev/tcp/127.0.0.1/$((61440 + job))") 2>/dev/null; then
    break # nobody listens there
  fi
done
export SLURM_JOB_ID=$job SLURM_STEP_NODELIST=127.0.0.1 SLURM_STEP_NUM_NODES=1
export SLURM_NTASKS=$processes SLURM_STEP_NUM_TASKS=$processes

# Each process gets a group of its own, so that a terminal's Ctrl-C comes once,
# from here: a second signal would end a run without saving.
set -m
children=()
read -r -a allowed <<<"$(cores | paste -sd ' ' -)"
share=$((${#allowed[@]} / processes))
for ((i = 0; i < processes; i++)); do
  pinned=()
  if ((share > 0)); then
    pinned=(taskset -c "$(IFS=, && echo "${allowed[*]:i*share:share}")")
  fi
  SLURM_PROCID=$i SLURM_LOCALID=$i \
    ${pinned[@]+"${pinned[@]}"} "${command[@]}" </dev/null &
  children+=($!)
done
trap 'kill -TERM "${children[@]}" 2>/dev/null || true' TERM INT HUP

status=0
deadline=
forced=
running=("${children[@]}")
while ((${#running[@]})); do
  sleep 0.2 & # not `wait -n`: a signal's trap has to run between two looks
  wait $! || true
  left=()
  for child in "${running[@]}"; do
    if kill -0 "$child" 2>/dev/null; then
      left+=("$child")
      continue
    fi
    code=0
    wait "$child" || code=$?
    # The first to fail is the reason, or the one that was killed (9): the
    # others fail of that, and may be seen to end in the same look.
    if ((code && !status)) || [[ $code == 137 && ! $forced ]]; then
      status=$code
      for i in "${!children[@]}"; do
        if [[ ${children[i]} == "$child" ]]; then failed=$i; fi
      done
      reason="status $code"
      if ((code > 128)); then reason="signal $((code - 128))"; fi
      deadline=$((SECONDS + patience))
    fi
  done
  running=(${left[@]+"${left[@]}"})
  if [[ $deadline ]] && ((${#running[@]} && SECONDS > deadline)); then
    forced=yes
    kill -KILL "${running[@]}" 2>/dev/null || true
  fi
done
if ((status)) && [[ $status != "${JAXR18_STOPPED_STATUS:-}" ]]; then
  echo "local.sh: process $failed of $processes ended with $reason, and the" \
    "others with it; the same command goes on from the last checkpoint" >&2
fi
exit "$status"
