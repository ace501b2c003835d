# Sourced by the scripts of this folder. The variables that steer a run: docs/launch.md.
#
#   defaults NAME=VALUE...                     for variables that the user has not set
#   model NAME                                 folder of a released model, or its name on the hub
#   launch LAUNCHER RECIPE [FLAG VALUE]...     last line: runs with the flags of the recipe, then these
#
# POSIX sh. The only file that calls srun, sbatch, torchrun or mpirun. ROOT: the project, set by the script.
# shellcheck shell=sh
set -eu
# shellcheck source=words.sh
. "$ROOT/shell/lib/words.sh"
# shellcheck source=settings.sh
. "$ROOT/shell/lib/settings.sh"

# What the user has set, before a script sets defaults.
[ "${LAUNCHER:-}" != python ] || : "${GPUS:=1}" # one process, whatever the script is made for
FOR_SLURM=$(only_for_slurm)
USER_BATCH_SIZE=${BATCH_SIZE:-} USER_SBATCH_ARGS=${SBATCH_ARGS:-}

defaults() { # NAME=VALUE...
  for pair; do
    eval ": \"\${${pair%%=*}:=\${pair#*=}}\""
  done
}

model() { # NAME
  if [ -d "$ROOT/pretrained/$1" ]; then
    printf '%s\n' "$ROOT/pretrained/$1"
  else
    printf '%s\n' "OpenGVLab/$1"
  fi
}

launch() { # LAUNCHER RECIPE [FLAG VALUE]...
  SCRIPT=$(readlink -f -- "$0")
  NAME=$(basename -- "$SCRIPT" .sh)
  help_if_asked "$@"
  settle_launcher "$1"
  recipe=$(recipe_words "$ROOT/shell/recipes/$2.args")
  shift 2
  settle_numbers
  settle_nodes
  settle_batch "$@"
  settle_python
  OUTPUT_DIR=$(last_value output_dir "$OUTPUT_DIR" "$@")
  SUMMARY=$(summary "$@")
  [ -n "${INTERNVL_NODE:-}" ] || printf '%s\n' "$SUMMARY" >&2
  if is_on "${CHECK:-}" || is_on "${ESTIMATE:-}"; then
    with_flags look "$recipe" "$@"
  elif is_on "${SUBMIT:-}"; then
    submit "$@"
  elif [ "$LAUNCHER" = torchrun ] && on_slurm; then
    on_each_node "$@"
  else
    with_flags run "$recipe" "$@"
  fi
}

help_if_asked() { # WORD...: what the script's header says, and where the rest is, if a word asks for help
  for word; do
    case $word in
    -h | --help)
      sed -n -e '1d' -e '/^# /!q' -e 's/^# //p' -- "$SCRIPT"
      printf 'variables: docs/launch.md; flags: internvl train --help\n'
      exit
      ;;
    esac
  done
}

with_flags() { # NEXT RECIPE WORD...: calls NEXT with all flags: of the recipe, of the batch, of script and user
  next=$1 recipe=$2
  shift 2
  recipe=$(without_repeats "$recipe" "$@")
  with_lines "$next" "$recipe" --output_dir "$OUTPUT_DIR" --per_device_train_batch_size "$PER_DEVICE" \
    --gradient_accumulation_steps "$ACCUMULATION" "$@"
}

# ---- The launchers

run() { # FLAG...
  in_container || need_python
  case $LAUNCHER in
  srun) with_srun "$GPUS" "$GPUS_PER_NODE" "$CPUS_PER_TASK" "$PYTHON" -u -m internvl_chat.train "$@" ;;
  torchrun)
    settle_rendezvous
    with_lines start "$(torchrun_lines)" -m internvl_chat.train "$@"
    ;;
  python) start "$PYTHON" -u -m internvl_chat.train "$@" ;;
  mpi)
    need mpirun "install Open MPI or MPICH, or set LAUNCHER=torchrun"
    start mpirun -np "$GPUS" env "PYTHONPATH=$(python_path)" "$PYTHON" -u -m internvl_chat.train "$@"
    ;;
  esac
}

slurm_lines() { # TASKS TASKS_PER_NODE CPUS_PER_TASK: what a job and its steps are given, one word a line
  printf '%s\n' --job-name "$NAME"
  if [ -z "${INTERNVL_BATCH:-}" ]; then # within a job these are decided
    [ -z "${PARTITION:-}" ] || printf '%s\n' -p "$PARTITION"
    [ -z "${QUOTA_TYPE:-}" ] || printf '%s\n' "--quotatype=$QUOTA_TYPE"
  fi
  gres=${GRES-gpu:$GPUS_PER_NODE}
  [ -z "$gres" ] || printf '%s\n' "--gres=$gres"
  printf '%s\n' "--nodes=$NODES" "--ntasks=$1" "--ntasks-per-node=$2" "--cpus-per-task=$3"
}

with_srun() { # TASKS TASKS_PER_NODE CPUS_PER_TASK COMMAND...
  need srun "this script starts through SLURM; on a machine without it set LAUNCHER=torchrun and GPUS"
  step=$(slurm_lines "$1" "$2" "$3" && printf '%s\n' --kill-on-bad-exit=1 && words_of "${SRUN_ARGS:-}")
  shift 3
  with_lines start "srun$newline$step" "$@"
}

settle_rendezvous() { # where the processes of a torchrun over several nodes meet
  [ "$NNODES" -gt 1 ] || return 0
  [ -z "${INTERNVL_NODE:-}" ] || NODE_RANK=$SLURM_NODEID
  [ -n "${MASTER_ADDR:-}" ] || die "NNODES=$NNODES: set MASTER_ADDR to the address of the first node, on all nodes"
  case ${NODE_RANK:-} in
  0 | [1-9] | [1-9][0-9] | [1-9][0-9][0-9] | [1-9][0-9][0-9][0-9]) [ "$NODE_RANK" -ge "$NNODES" ] || return 0 ;;
  esac
  die "NODE_RANK=${NODE_RANK:-}: set it to the number of this node, 0 (on MASTER_ADDR) to $((NNODES - 1))"
}

torchrun_lines() { # torchrun as a module, so that it is that of PYTHON
  printf '%s\n' "$PYTHON" -m internvl_chat.train.torchrun
  if [ "$NNODES" -gt 1 ]; then
    printf '%s\n' --nnodes "$NNODES" --node_rank "$NODE_RANK" --master_addr "$MASTER_ADDR"
    printf '%s\n' --master_port "${MASTER_PORT:-29500}"
  elif [ -n "${MASTER_PORT:-}" ]; then
    printf '%s\n' --nnodes 1 --node_rank 0 --master_addr 127.0.0.1 --master_port "$MASTER_PORT"
  else # a free port; the address, because names of machines do not always resolve
    printf '%s\n' --standalone --local_addr 127.0.0.1
  fi
  printf '%s\n' --nproc_per_node "$GPUS_PER_NODE"
  ! torchrun_knows signals-to-handle || printf '%s\n' --signals-to-handle SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1
}

torchrun_knows() { # OPTION
  package=$("$PYTHON" -c 'import importlib.util as u; print(u.find_spec("torch").submodule_search_locations[0])' \
    2>/dev/null) && grep -q -e "--$1" "$package/distributed/run.py"
}

on_each_node() { # WORD...: this script again as a task on each node of the job, there with torchrun
  set -- sh "$SCRIPT" "$@"
  if [ "$NODES" -gt 1 ]; then
    first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    set -- "MASTER_ADDR=$(address_of "$first")" "MASTER_PORT=${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 10000))}" "$@"
  fi
  with_srun "$NODES" 1 $((CPUS_PER_TASK * GPUS_PER_NODE)) env INTERNVL_NODE=1 "NNODES=$NODES" "$@"
}

address_of() { # NODE: its name, or where names do not resolve what SLURM knows
  if getent hosts "$1" >/dev/null; then
    printf '%s\n' "$1"
  else
    scontrol show node "$1" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p'
  fi
}

submit() { # WORD...: a batch job that runs this script with them
  in_container || need_python
  need sbatch "SUBMIT=1 needs SLURM; leave SUBMIT out on a machine without it"
  [ -n "$PRINT" ] || make_output_dir
  job=$(
    slurm_lines "$GPUS" "$GPUS_PER_NODE" "$CPUS_PER_TASK"
    printf '%s\n' --requeue --open-mode=append --export=ALL "--signal=$(warning_signal)@$GRACE"
    printf '%s\n' --output "$(printf '%s' "$OUTPUT_DIR" | sed 's/%/%%/g')/slurm-%j.out"
    words_of "${SBATCH_ARGS:-}"
  )
  with_lines become "sbatch$newline$job" "$ROOT/shell/lib/batch.sh" "$OUTPUT_DIR" "$SCRIPT" "$@"
}

warning_signal() { # that the launcher passes on to the ranks
  if [ "$LAUNCHER" != torchrun ] || torchrun_knows signals-to-handle; then printf USR1; else printf TERM; fi
}

# ---- Starting

need() { # PROGRAM MEND
  [ -n "$PRINT" ] || command -v "$1" >/dev/null 2>&1 || die "$1 is not found: $2"
}

in_container() { # whether the ranks run in one, which has a python of its own
  case "${SRUN_ARGS:-} ${SBATCH_ARGS:-}" in *--container*) ;; *) return 1 ;; esac
}

need_python() {
  need "$PYTHON" 'activate the environment (. .venv/bin/activate), or set PYTHON='
  [ -n "$PRINT" ] ||
    "$PYTHON" -c 'import importlib.util as u, sys; sys.exit(None in map(u.find_spec, ("torch", "transformers")))' ||
    die "$PYTHON has no torch or no transformers: pip install -e $(quoted "$ROOT") (README, Install), or activate the \
environment that has them, or set PYTHON to its python"
}

python_path() {
  printf '%s\n' "$ROOT${PYTHONPATH:+:$PYTHONPATH}"
}

make_output_dir() {
  if ! mkdir -p -- "$OUTPUT_DIR" || ! [ -w "$OUTPUT_DIR" ]; then
    die "OUTPUT_DIR=$OUTPUT_DIR: cannot write there; set OUTPUT_DIR to a folder of yours"
  fi
}

log_to() { # FILE: from here on output is shown and appended to it
  pipe=$(mktemp -d)
  trap 'rm -rf -- "$pipe"; exit 143' HUP INT TERM
  mkfifo "$pipe/log"
  (
    trap '' HUP INT QUIT TERM USR1 USR2 PIPE # what a run says while it is being stopped is written, too
    tee -a -- "$1" <"$pipe/log" &
  )
  exec >"$pipe/log" 2>&1
  rm -r -- "$pipe"
}

start() { # COMMAND...: the one that trains
  if [ -z "$PRINT" ]; then
    [ "$LAUNCHER" = python ] || exec </dev/null # srun would read what a loop around it is to read
    if [ -z "${INTERNVL_NODE:-}" ]; then        # nodes are logged where they were started
      make_output_dir
      printf '%s %s\n' "$(date '+%Y-%m-%d %H:%M:%S')" "$SUMMARY" >>"$OUTPUT_DIR/training_log.txt"
      log_to "$OUTPUT_DIR/training_log.txt"
    fi
  fi
  [ "$LAUNCHER" != torchrun ] ||
    set -- "OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}" "TORCH_ELASTIC_SHUTDOWN_TIMEOUT=$GRACE" "$@"
  become env "PYTHONPATH=$(python_path)" "TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-3}" "$@"
}

become() { # COMMAND...: this process turns into it, so that signals and exit status are the command's
  [ -n "$PRINT" ] || exec "$@"
  print_command "$@"
}

look() { # FLAG...: CHECK and ESTIMATE, about the flags of the run
  need_python
  if is_on "${CHECK:-}"; then
    tool check --world_size "$GPUS" "$@" || exit
  fi
  if is_on "${ESTIMATE:-}"; then
    with_lines tool "estimate$newline--gpus$newline$GPUS$newline$(words_of "${ESTIMATE_ARGS:-}")" "$@"
  fi
}

tool() { # COMMAND FLAG...
  set -- env "PYTHONPATH=$(python_path)" "$PYTHON" -m internvl_chat "$@"
  if [ -n "$PRINT" ]; then print_command "$@"; else "$@"; fi
}
