#!/bin/sh
# Asks a checkpoint the questions of benchmarks, and scores its answers: docs/evaluation.md.
#
#   GPUS=8 sh evaluate.sh pretrained/InternVL2-1B vqa-textvqa-val --dynamic
#
# KEY: of `internvl eval --list`; further keys and options go to `internvl eval`. One process for each of GPUS cards, as
# many as are there; one process without a card, for LAUNCHER=python, and for --auto, which spreads the model over all
# cards. LAUNCHER=print shows the command; PARTITION=NAME, or LAUNCHER=srun, runs it through SLURM.
# Needs nothing but sh.
# shellcheck disable=SC2034,SC2154 # names that shell/lib uses, and sets
ROOT=$(readlink -f -- "$0") && ROOT=${ROOT%/*} && . "$ROOT/shell/lib/run.sh"

usage() {
  printf 'GPUS=8 sh evaluate.sh CKPT KEY [KEY]... [OPTION]...\n'
  printf '  CKPT: a model or adapter folder, or a name on the hub\n'
  printf '  KEY: internvl eval --list names them all; OPTION: internvl eval --help\n'
}

cards() { # how many this process may use
  if command -v nvidia-smi >/dev/null 2>&1; then
    found=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU ') || :
  else # cards of other makers
    found=$("$PYTHON" -c 'import torch; print(torch.accelerator.device_count())' 2>/dev/null) || :
  fi
  case ${found:-none} in *[!0-9]*) found=0 ;; esac
  if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
    named=$(printf '%s\n' "$CUDA_VISIBLE_DEVICES" | tr ',' '\n' | grep -c '[^ ]') || :
    [ "$CUDA_VISIBLE_DEVICES" != -1 ] || named=0
    [ "$found" -le "$named" ] || found=$named
  fi
  printf '%s\n' "$found"
}

settle_processes() { # WORD...: sets LAUNCHER, GPUS, and HOW it is started, in words
  asked=${GPUS:-8}
  require_numbers "GPUS=$asked"
  for word; do
    [ "$word" != --auto ] || auto=1
  done
  if [ -n "${auto:-}" ] && [ "$LAUNCHER" = srun ]; then
    GRES=${GRES-gpu:$asked} HOW="1 process, the model over $(plural "$asked" GPU)" GPUS=1 GPUS_PER_NODE=1
  elif [ -n "${auto:-}" ]; then
    LAUNCHER=python HOW="1 process, the model over all GPUs" GPUS=1
  elif [ "$LAUNCHER" = torchrun ] && [ "${NNODES:-1}" = 1 ]; then
    if [ -n "$PRINT" ]; then GPUS=$asked; else GPUS=$(cards); fi # what is shown may be for another machine
    less=
    [ "$GPUS" -ge "$asked" ] && GPUS=$asked || less=" (GPUS=$asked, but no more are here)"
    HOW="a process on each of $(plural "$GPUS" GPU)$less"
    [ "$GPUS" -gt 0 ] || HOW="1 process on the CPU (no GPU is here)" GPUS=1
    [ "$GPUS" -gt 1 ] || LAUNCHER=python
  else
    GPUS=$asked HOW="a process for each of $(plural "$asked" GPU)"
    [ "$LAUNCHER" != python ] || HOW="1 process"
  fi
}

start() { # COMMAND...: instead of that of run.sh, which keeps a log
  [ -n "$PRINT" ] || [ "$LAUNCHER" = python ] || exec </dev/null # srun would read what a loop around it is to read
  [ "$LAUNCHER" != torchrun ] || set -- "OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}" "$@"
  become env "PYTHONPATH=$(python_path)" "TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-3}" "$@"
}

for word; do
  case $word in -h | --help) usage && exit ;; esac
done
case ${1:-} in
--list) die "the keys are those of: internvl eval --list" ;;
'' | -*) die "the checkpoint comes first, then a key:$newline$(usage)" ;;
esac
case ${2:-} in '' | -*) die "$1: a key comes second, e.g. vqa-textvqa-val:$newline$(usage)" ;; esac
! is_on "${SUBMIT:-}" || die "SUBMIT=1 is for training; sbatch --wrap 'sh evaluate.sh ...' makes a job of an evaluation"

NAME=evaluate
settle_launcher torchrun
settle_python
in_container || need_python
settle_processes "$@"
settle_numbers
settle_nodes
words="$1 $2"
for word; do # further keys are named, options are not
  case $word in "$1" | "$2") ;; -*) break ;; *) words="$words $word" ;; esac
done
printf '%s: %s: %s\n' "$NAME" "$words" "$HOW" >&2

case $LAUNCHER in
srun) with_srun "$GPUS" "$GPUS_PER_NODE" "$CPUS_PER_TASK" "$PYTHON" -u -m internvl_chat.eval "$@" ;;
torchrun) settle_rendezvous && with_lines start "$(torchrun_lines)" -m internvl_chat.eval "$@" ;;
mpi)
  need mpirun "install Open MPI or MPICH, or set LAUNCHER=torchrun"
  start mpirun -np "$GPUS" env "PYTHONPATH=$(python_path)" "$PYTHON" -u -m internvl_chat.eval "$@"
  ;;
python) start "$PYTHON" -u -m internvl_chat.eval "$@" ;;
esac
