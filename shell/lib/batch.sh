#!/bin/sh
# Job script of SUBMIT=1: runs SCRIPT in the allocation and, if the run asks for it, puts the job back into the queue.
#
#   sbatch ... batch.sh OUTPUT_DIR SCRIPT [WORD]...
#
# SLURM runs a copy of this file, so it cannot source its neighbours.
set -u
output_dir=$1 script=$2
shift 2
asks=$output_dir/start_again.json # written by a run that was stopped for a reason outside of it
counted=$output_dir/restarts.txt  # "RESTARTS CHECKPOINT": restarts in a row that made none newer than CHECKPOINT

say() { # MESSAGE
  printf '%s batch job %s: %s\n' "$(date '+%Y-%m-%d %H:%M:%S')" "$SLURM_JOB_ID" "$1" |
    tee -a -- "$output_dir/training_log.txt"
}

newest_checkpoint() { # its step; only complete ones count
  for marker in "$output_dir"/checkpoint-*/internvl_state.json; do
    [ -e "$marker" ] || continue
    folder=${marker%/*}
    printf '%s\n' "${folder##*-}"
  done | sort -n | tail -n 1
}

fruitless() { # restarts in a row without a new checkpoint, up to now
  count=-1 step=
  [ ! -e "$counted" ] || read -r count step <"$counted"
  if [ "$count" -ge 0 ] && [ "$step" = "$1" ]; then printf '%s\n' $((count + 1)); else printf '0\n'; fi
}

start_again() { # STATUS of the run
  limit=${MAX_RESTARTS:-3} step=$(newest_checkpoint)
  step=${step:-0}
  reason=$(sed -n 's/.*"reason": *"\([^"]*\)".*/\1/p' "$asks")
  restarts=$(fruitless "$step")
  if [ "$restarts" -ge "$limit" ]; then
    say "stopped ($reason); not started again: $restarts restarts made no checkpoint newer than step $step \
(MAX_RESTARTS=$limit)"
    return
  fi
  printf '%s %s\n' "$restarts" "$step" >"$counted"
  say "stopped ($reason); back into the queue, to go on from step $step"
  scontrol requeue "$SLURM_JOB_ID" 2>/dev/null ||
    say "(SLURM has done that by itself, or forbids it: squeue -j $SLURM_JOB_ID shows which)"
}

unset SUBMIT
export INTERNVL_BATCH=1
trap : HUP INT TERM USR1 USR2 # the run is told, too, and decides
[ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] || rm -f -- "$counted"
rm -f -- "$asks"
status=0
sh "$script" "$@" || status=$?
if [ "$status" -eq 0 ]; then
  rm -f -- "$counted"
elif [ -e "$asks" ]; then
  start_again
fi
exit "$status"
