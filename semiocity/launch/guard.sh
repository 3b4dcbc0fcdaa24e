#!/usr/bin/env bash
# Beside srun, in the batch script: ends an srun whose step is dead. When the step's daemon (slurmstepd) is killed, its
# tasks go on without it or die with it, but nobody tells srun; it would wait until the time limit.
#
#   guard.sh ATTEMPT_FOLDER BATCH_PID GRACE_S RUN ATTEMPT INDEX
#
# Once a process of this task (`semiocity.launch.entry RUN ATTEMPT INDEX`) has been seen on this node, there is to be one
# until srun ends. Where there has been none for GRACE_S seconds, srun is killed and teardown.sh finds a note that says
# why. Needs bash and /proc; other users' processes may be hidden.
set -u
attempt=$1 batch=$2 grace=$3
shift 3
task="semiocity.launch.entry $*"
exec {never}<> <(:) # nothing is ever written here: to wait without a child that would outlive this process

srun= # its process id
look() { # is there a process of this task? Finds srun, too
  local folder words rest
  alive=no srun=
  for folder in /proc/[0-9]*; do
    mapfile -d '' -t words 2>/dev/null <"$folder/cmdline" || continue
    [[ "${words[*]}" == *"$task" ]] || continue
    if [[ ${words[0]##*/} == srun ]]; then
      read -r rest 2>/dev/null <"$folder/stat" || continue
      rest=${rest##*) } # state, parent, …
      read -r _ rest _ <<<"$rest"
      [ "$rest" = "$batch" ] && srun=${folder#/proc/}
    else
      alive=yes
    fi
  done
}

seen=no missing=0 every=1 # often at first: a task may be over soon
while kill -0 "$batch" 2>/dev/null; do
  read -rt "$every" -u "$never"
  look
  [ "$alive" = yes ] && seen=yes missing=0 every=$((grace / 6 > 0 ? grace / 6 : 1)) && continue
  [ "$seen" = yes ] && [ -n "$srun" ] || continue
  missing=$((missing + every))
  [ "$missing" -ge "$grace" ] || continue
  job=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}
  echo "semiocity: no process of this task for $missing s, and srun still waits: its slurmstepd died; srun is ended" >&2
  mkdir -p "$attempt/ends"
  note=$attempt/ends/$job.${SLURM_RESTART_COUNT:-0}
  [ -s "$note" ] || printf '%s\n' cause=killed "reason=the step's daemon (slurmstepd) died, and srun did not notice" >"$note"
  kill -KILL "$srun"
  exit 0
done
