#!/bin/sh
# InternVL2_5-78B, second fine-tuning: language model and projector train, the vision tower is frozen.
# 32 GPUs x 1 sample x 4 accumulated = batch 128; one epoch.
ROOT=$(readlink -f -- "$0") && ROOT=${ROOT%/shell/*} && . "$ROOT/shell/lib/run.sh"

defaults GPUS=32 BATCH_SIZE=128 PER_DEVICE_BATCH_SIZE=1 \
  OUTPUT_DIR="$ROOT/work_dirs/internvl_chat_v2_5/internvl2_5_78b_dynamic_res_2nd_finetune_full"
launch srun internvl2.5_2nd_finetune_full \
  --model_name_or_path "$(model InternVL2_5-78B)" \
  --deepspeed zero3 \
  --drop_path_rate 0.4 \
  --learning_rate 2e-5 \
  "$@"
