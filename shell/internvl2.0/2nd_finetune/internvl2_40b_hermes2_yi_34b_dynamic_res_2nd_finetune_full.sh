#!/bin/sh
# InternVL2-40B, second fine-tuning: language model and projector train, the vision tower is frozen.
# 16 GPUs x 2 samples x 4 accumulated = batch 128; one epoch.
ROOT=$(readlink -f -- "$0") && ROOT=${ROOT%/shell/*} && . "$ROOT/shell/lib/run.sh"

defaults GPUS=16 BATCH_SIZE=128 PER_DEVICE_BATCH_SIZE=2 \
  OUTPUT_DIR="$ROOT/work_dirs/internvl_chat_v2_0/internvl2_40b_hermes2_yi_34b_dynamic_res_2nd_finetune_full"
launch srun internvl2.0_2nd_finetune_full \
  --model_name_or_path "$ROOT/pretrained/InternVL2-40B" \
  --conv_style Hermes-2 \
  --deepspeed zero3 \
  --drop_path_rate 0.4 \
  --learning_rate 2e-5 \
  "$@"
