#!/bin/sh
# InternVL3-78B, second fine-tuning: language model and projector train, the vision tower is frozen.
# 32 GPUs x 2 samples x 2 accumulated = batch 128; one epoch.
ROOT=$(readlink -f -- "$0") && ROOT=${ROOT%/shell/*} && . "$ROOT/shell/lib/run.sh"

defaults GPUS=32 BATCH_SIZE=128 PER_DEVICE_BATCH_SIZE=2 \
  OUTPUT_DIR="$ROOT/work_dirs/internvl_chat_v3/internvl3_78b_dynamic_res_2nd_finetune_full"
launch srun internvl3.0_2nd_finetune_full \
  --model_name_or_path "$(model InternVL3-78B)" \
  --deepspeed zero3 \
  --drop_path_rate 0.4 \
  "$@"
