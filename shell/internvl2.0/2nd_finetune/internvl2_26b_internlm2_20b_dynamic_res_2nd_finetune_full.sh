#!/bin/sh
# InternVL2-26B, second fine-tuning: language model and projector train, the vision tower is frozen.
# 8 GPUs x 2 samples x 8 accumulated = batch 128; one epoch.
ROOT=$(readlink -f -- "$0") && ROOT=${ROOT%/shell/*} && . "$ROOT/shell/lib/run.sh"

defaults GPUS=8 BATCH_SIZE=128 PER_DEVICE_BATCH_SIZE=2 \
  OUTPUT_DIR="$ROOT/work_dirs/internvl_chat_v2_0/internvl2_26b_internlm2_20b_dynamic_res_2nd_finetune_full"
launch torchrun internvl2.0_2nd_finetune_full \
  --model_name_or_path "$ROOT/pretrained/InternVL2-26B" \
  --deepspeed zero3 \
  --drop_path_rate 0.4 \
  --learning_rate 2e-5 \
  "$@"
