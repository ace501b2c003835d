# Sourced by run.sh: what is asked for, made whole and checked. Numbers that do not fit are refused, with those that do.
# shellcheck shell=sh disable=SC2034,SC2154 # names that both files use

only_for_slurm() { # those of the variables for SLURM alone that are set, in words
  [ -z "${INTERNVL_NODE:-}" ] || return 0 # srun, which started this task, has had them
  given="${PARTITION:+, PARTITION}${QUOTA_TYPE:+, QUOTA_TYPE}${SRUN_ARGS:+, SRUN_ARGS}"
  printf '%s\n' "${given#, }"
}

settle_launcher() { # DEFAULT: sets LAUNCHER, and PRINT if the command is only to be shown
  PRINT=
  [ -z "$FOR_SLURM" ] || set -- srun
  case ${LAUNCHER:=$1} in
  srun | slurm) LAUNCHER=srun ;;
  torchrun | pytorch) LAUNCHER=torchrun ;;
  python | mpi) ;;
  print) LAUNCHER=$1 PRINT=1 ;;
  *) die "LAUNCHER=$LAUNCHER: must be srun (or slurm), torchrun (or pytorch), python, mpi or print" ;;
  esac
  [ -z "$USER_SBATCH_ARGS" ] || is_on "${SUBMIT:-}" || [ -n "${INTERNVL_BATCH:-}" ] ||
    die "SBATCH_ARGS is for SUBMIT=1; for srun: SRUN_ARGS"
  if is_on "${SUBMIT:-}" && [ "$LAUNCHER" = mpi ]; then
    die "SUBMIT=1: mpirun gets no warning before the time is up; set LAUNCHER=srun or LAUNCHER=torchrun"
  fi
  [ -z "${INTERNVL_BATCH:-}" ] || [ "$LAUNCHER" != python ] || LAUNCHER=srun # only a step is warned by SLURM
  [ -z "$FOR_SLURM" ] || [ "$LAUNCHER" = srun ] || on_slurm ||
    die "LAUNCHER=$LAUNCHER would ignore $FOR_SLURM: leave out LAUNCHER to use SLURM, or unset them to do without"
}

settle_numbers() {
  if [ -n "${SLURM_JOB_ID:-}" ] && ! is_on "${SUBMIT:-}"; then # in a job: what it was given
    : "${GPUS_PER_NODE:=${SLURM_NTASKS_PER_NODE:-}}" "${CPUS_PER_TASK:=${SLURM_CPUS_PER_TASK:-}}"
  fi
  : "${GPUS_PER_NODE:=8}" "${CPUS_PER_TASK:=10}" "${GRACE:=120}" "${NNODES:=1}"
  [ -n "${GPUS:-}" ] || die "GPUS is not set: it is the number of GPUs of the whole run, e.g. GPUS=8"
  require_numbers "GPUS=$GPUS" "GPUS_PER_NODE=$GPUS_PER_NODE" "BATCH_SIZE=${BATCH_SIZE:-}" \
    "PER_DEVICE_BATCH_SIZE=${PER_DEVICE_BATCH_SIZE:-}" "CPUS_PER_TASK=$CPUS_PER_TASK" "GRACE=$GRACE" \
    "NNODES=$NNODES" "MASTER_PORT=${MASTER_PORT:-}"
  [ "$LAUNCHER" != python ] || [ "$GPUS" -eq 1 ] ||
    die "GPUS=$GPUS: LAUNCHER=python is one process on one GPU; set LAUNCHER=torchrun, or leave GPUS out"
}

on_slurm() { # whether a torchrun script gets its nodes from SLURM
  [ -z "${INTERNVL_NODE:-}" ] && { is_on "${SUBMIT:-}" || [ -n "${INTERNVL_BATCH:-}" ]; }
}

settle_nodes() { # sets NODES, and GPUS_PER_NODE to what a node really gives
  if [ "$LAUNCHER" = torchrun ] && ! on_slurm; then
    GPUS_PER_NODE=$((GPUS / NNODES)) NODES=$NNODES
    [ $((GPUS % NNODES)) -eq 0 ] ||
      die "GPUS=$GPUS is not a multiple of NNODES=$NNODES: set $(multiples_near GPUS "$GPUS" "$NNODES")"
    return
  fi
  [ "$LAUNCHER" != mpi ] && [ "$GPUS_PER_NODE" -le "$GPUS" ] || GPUS_PER_NODE=$GPUS
  NODES=$((GPUS / GPUS_PER_NODE))
  [ $((GPUS % GPUS_PER_NODE)) -eq 0 ] ||
    die "GPUS=$GPUS is not a multiple of GPUS_PER_NODE=$GPUS_PER_NODE: set $(multiples_near GPUS "$GPUS" \
      "$GPUS_PER_NODE"), or GPUS_PER_NODE=$(largest_divisor "$GPUS" "$GPUS_PER_NODE")"
}

settle_batch() { # WORD...: sets PER_DEVICE and ACCUMULATION; what is appended wins
  given=$(last_value per_device_train_batch_size '' "$@")
  PER_DEVICE=${given:-${PER_DEVICE_BATCH_SIZE:-1}}
  ACCUMULATION=$(last_value gradient_accumulation_steps '' "$@")
  [ -n "${BATCH_SIZE:-}$ACCUMULATION" ] ||
    die "BATCH_SIZE is not set: it is the number of samples, or packs, of an optimizer step, e.g. BATCH_SIZE=128"
  require_numbers "--per_device_train_batch_size=$PER_DEVICE" "--gradient_accumulation_steps=$ACCUMULATION"
  if [ -z "$ACCUMULATION" ]; then
    divide_batch $((GPUS * PER_DEVICE)) "${given:+--per_device_train_batch_size }"
  else
    batch=$((GPUS * PER_DEVICE * ACCUMULATION))
    [ "${USER_BATCH_SIZE:-$batch}" -eq "$batch" ] ||
      die "BATCH_SIZE=$USER_BATCH_SIZE, but --gradient_accumulation_steps $ACCUMULATION makes a batch of $batch = \
$GPUS GPUs x $PER_DEVICE x $ACCUMULATION: leave out one of the two"
  fi
}

divide_batch() { # STEP, samples of one micro-batch of all GPUs; FLAG, if one gives PER_DEVICE: sets ACCUMULATION
  ACCUMULATION=$((BATCH_SIZE / $1))
  [ $((BATCH_SIZE % $1)) -ne 0 ] || return 0
  mend=$(multiples_near BATCH_SIZE "$BATCH_SIZE" "$1")
  [ $((BATCH_SIZE % GPUS)) -ne 0 ] ||
    mend="$mend, or ${2:-PER_DEVICE_BATCH_SIZE=}$(largest_divisor $((BATCH_SIZE / GPUS)) "$PER_DEVICE")"
  fewer=$(fewer_gpus)
  die "BATCH_SIZE=$BATCH_SIZE is not a multiple of GPUS x PER_DEVICE_BATCH_SIZE = $GPUS x $PER_DEVICE = $1: set \
$mend${fewer:+, or GPUS=$fewer}"
}

fewer_gpus() { # the largest number of GPUs below GPUS that keeps the batch and fills its nodes, if there is one
  number=$((BATCH_SIZE / PER_DEVICE))
  [ "$number" -lt "$GPUS" ] || number=$((GPUS - 1))
  while [ "$number" -gt 0 ]; do
    if [ $((BATCH_SIZE % (number * PER_DEVICE))) -eq 0 ] && fill_nodes "$number"; then
      printf '%s\n' "$number"
      return
    fi
    number=$((number - 1))
  done
}

fill_nodes() { # NUMBER: whether settle_nodes takes so many GPUs
  if [ "$LAUNCHER" = torchrun ] && ! on_slurm; then
    [ $(($1 % NNODES)) -eq 0 ]
  else
    [ "$1" -le "$GPUS_PER_NODE" ] || [ $(($1 % GPUS_PER_NODE)) -eq 0 ]
  fi
}

settle_python() {
  [ -z "${PYTHON:-}" ] || return 0
  for folder in "${VIRTUAL_ENV:-}" "${CONDA_PREFIX:-}" "$ROOT/.venv"; do
    [ -z "$folder" ] || [ ! -x "$folder/bin/python" ] || { PYTHON=$folder/bin/python && return; }
  done
  PYTHON=$(command -v python3 || command -v python || printf 'python3\n')
}

plural() { # NUMBER NOUN
  [ "$1" -eq 1 ] && printf '%s %s\n' "$1" "$2" || printf '%s %ss\n' "$1" "$2"
}

summary() { # WORD...: what starts, with the batch as it is
  noun=sample
  ! is_on "$(with_lines last_value "use_packed_ds${newline}False$newline$recipe" "$@")" || noun=pack
  printf '%s: %s, %s x %s, batch %s = %s x %s per device x %s accumulated\n' \
    "$NAME" "$LAUNCHER" "$(plural "$NODES" node)" "$(plural "$GPUS_PER_NODE" GPU)" \
    "$(plural $((GPUS * PER_DEVICE * ACCUMULATION)) "$noun")" "$(plural "$GPUS" GPU)" "$PER_DEVICE" "$ACCUMULATION"
}
