#!/usr/bin/env bash
# After srun, in the batch script, outside the container: notes how this attempt at the job ended, and brings the job
# back when that is right and within its budget. Needs bash, coreutils and scontrol; causes.py knows the same causes.
#
#   teardown.sh ATTEMPT_FOLDER EXIT_CODE yes|no CAUSE=BUDGET...      yes: jobs may come back on this cluster
#
# A task that knows why it ends wrote ends/JOB.RESTART, its first line cause=WORD; one that saved and wants to come back
# wrote requeue/JOB.RESTART with the cause. Otherwise exit code and the end of the log must do.
set -u
trap '' TERM # a requeue sends it to this script too, which has a little left to do then

attempt=$1 code=$2 may_return=$3
shift 3
# Not SLURM_JOB_ID: for one task of an array that is the array's own, and scontrol would take it for all of its tasks.
job=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}
end=$attempt/ends/$job.${SLURM_RESTART_COUNT:-0}
asked=$attempt/requeue/$job.${SLURM_RESTART_COUNT:-0}
[ "$code" -ne 0 ] || [ -e "$asked" ] || exit 0
grep -q '^budget=' "$end" 2>/dev/null && exit 0 # limit.sh was here before

mkdir -p "$attempt/ends"
facts=$(scontrol show job --oneliner "$job" 2>/dev/null)
fact() { grep -oE "(^| )$1=[^ ]+" <<<"$facts" | head -n 1 | cut -d= -f2-; }
# Whoever ended the job with TERM to this script, too, does not want it back; but for the time limit.
[ -z "${SEMIOCITY_TOLD:-}" ] || [ "$(fact Reason)" = TimeLimit ] || exit 0
tail_of_log() { # of this attempt: a job that comes back goes on in the same file
  tail -c 16384 "$(fact StdOut)" 2>/dev/null | tr -d '\0' | awk '/^semiocity: begins /{s = ""} {s = s $0 "\n"} END {printf "%s", s}'
}

guess() { # from the exit code and the end of the log
  local log
  log=$(tail_of_log)
  case $log in
    *"DUE TO TIME LIMIT"*) echo time_limit ;;
    *"DUE TO PREEMPTION"*) echo preemption ;;
    *"DUE TO NODE FAILURE"*) echo node_failure ;;
    *oom-kill* | *oom_kill* | *"Out Of Memory"*) echo out_of_memory ;;
    *"Fatal Python error"*) echo crash ;;
    *) case $code in
      255) [[ $log == *FATAL:* ]] && echo bad_node || echo crash ;; # the image or a folder could not be mounted
      137 | 9) echo killed ;;
      *) [[ $log == *"Timeout ("*")!"* ]] && echo hung || echo crash ;;
    esac ;;
  esac
}

if [ "$(fact JobState)" = CANCELLED ]; then
  cause=cancelled
elif [ -e "$asked" ]; then
  cause=$(head -n 1 "$asked")
  cause=${cause:-preemption}
elif [ -s "$end" ]; then
  cause=$(sed -n 's/^cause=//p' "$end" | head -n 1)
else
  cause=$(guess)
fi
case $cause in
  preemption | time_limit | hung) budget=$cause ;;
  out_of_memory | gpu_out_of_memory) budget=out_of_memory ;;
  node_failure | bad_node) budget=node_failure ;;
  crash | killed) budget=crash ;;
  *) budget=none ;; # refused, cancelled: coming back would not help
esac
grep -qx again=no "$end" 2>/dev/null && budget=none # it would end the same way
[ -s "$end" ] || echo "cause=$cause" >>"$end"
printf '%s\n' "budget=$budget" "code=$code" "nodes=${SLURM_JOB_NODELIST:-}" "ended=$(date +%s)" >>"$end"

allowed=0
for pair in "$@"; do [ "${pair%%=*}" = "$budget" ] && allowed=${pair#*=}; done
used=$(grep -lx "budget=$budget" "$attempt/ends/$job".* 2>/dev/null | wc -l)
if [ "$budget" = none ]; then
  exit 0
elif [ "$used" -gt "$allowed" ]; then
  echo "over_budget=$allowed" >>"$end"
  echo "semiocity: ended by $cause, and retries.$budget = $allowed is used up; not again by itself" >&2
  exit 0
elif [ "$may_return" != yes ]; then
  run=$(basename "$(dirname "$(dirname "$attempt")")")
  echo "semiocity: ended by $cause; jobs do not come back by themselves here: semiocity retry $run" >&2
  exit 0
fi
echo "semiocity: ended by $cause ($used of at most $allowed); the job comes back" >&2

exclude=
if [ "$budget" = node_failure ]; then
  host=$(sed -n 's/^host=//p' "$end" | head -n 1)
  exclude=${host:-$SLURM_JOB_NODELIST}
  printf '%s\t%s\n' "$exclude" "$cause" >>"$attempt/avoided" # for `semiocity status`
  before=$(fact ExcNodeList)
  [ "$before" = "(null)" ] || exclude=$before,$exclude
fi
scontrol requeue "$job" || exit 0
[ -n "$exclude" ] || exit 0
for _ in 1 2 3 4 5 6 7 8; do # it can be changed as soon as the job is pending again
  scontrol update JobId="$job" ExcNodeList="$exclude" 2>/dev/null && break
  sleep 0.2
done
