#!/usr/bin/env bash
# Beside srun, in the batch script: acts when the time limit comes inside a unit of work. SLURM then sends TERM to every
# process of the job and, after KillWait (30 s by default), KILL, to the batch script as well: nobody would be left to note
# how the attempt ended, and to bring the job back.
#
#   limit.sh ATTEMPT_FOLDER BATCH_PID TASK_INDEX yes|no CAUSE=BUDGET...      the last as for teardown.sh
#
# An attempt that got no further than the last one that ended in the same way stays: it would only burn hours.
# Needs bash, coreutils and scontrol.
set -u
attempt=$1 batch=$2 index=$3
shift 3
job=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}
restart=${SLURM_RESTART_COUNT:-0}
end=$attempt/ends/$job.$restart
before=$(grep -lx hard=yes "$attempt/ends/$job".* 2>/dev/null | sort -V | tail -n 1)
told=
trap 'told=yes' TERM
trap 'exit 0' USR1
exec {never}<> <(:) # nothing is ever written here: to wait without a child that would outlive this process

kill_wait_s() {
  local found
  found=$(scontrol show config 2>/dev/null | sed -n 's/^KillWait *= *\([0-9]*\).*/\1/p')
  echo "${found:-30}"
}

progress() { # what this job has come to: the newest checkpoint, or where its task is among its shards and rows
  cat "$attempt/../../checkpoints/latest" 2>/dev/null ||
    grep -oE '"(shard|done_shards|rows)": *[0-9]+' "$attempt/tasks/$(printf %04d "$index").json" 2>/dev/null
}

while kill -0 "$batch" 2>/dev/null; do
  read -rt 1 -u "$never"
  [ -n "$told" ] || continue
  told= # a preemption and scancel send it, too. The state is COMPLETING in all of these cases
  [[ " $(scontrol show job --oneliner "$job" 2>/dev/null) " == *" Reason=TimeLimit "* ]] || continue
  wait_s=$(kill_wait_s)
  for ((i = 0; i < wait_s / 2; i++)); do read -rt 1 -u "$never"; done # it may still save, and then all is well
  [ -e "$attempt/requeue/$job.$restart" ] && exit 0
  [ -s "$end" ] && exit 0
  mkdir -p "$attempt/ends"
  now=$(progress | tr -d ' "\n')
  {
    printf '%s\n' cause=time_limit "reason=the limit came inside a unit of work" hard=yes "progress=$now"
    grep -qx hard=yes "$before" 2>/dev/null && grep -qxF "progress=$now" "$before" && echo again=no
  } >"$end"
  bash "${0%/*}/teardown.sh" "$attempt" 143 "$@"
  exit 0
done
