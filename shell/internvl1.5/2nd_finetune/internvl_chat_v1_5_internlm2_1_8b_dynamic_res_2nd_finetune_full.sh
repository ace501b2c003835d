#!/bin/sh
# Mini-InternVL-Chat-2B-V1-5, second fine-tuning: language model and projector train, the vision tower is frozen.
# 8 GPUs x 4 samples x 4 accumulated = batch 128; one epoch.
ROOT=$(readlink -f -- "$0") && ROOT=${ROOT%/shell/*} && . "$ROOT/shell/lib/run.sh"

defaults GPUS=8 BATCH_SIZE=128 PER_DEVICE_BATCH_SIZE=4 \
  OUTPUT_DIR="$ROOT/work_dirs/internvl_chat_v1_5/internvl_chat_v1_5_internlm2_1_8b_dynamic_res_2nd_finetune_full"
launch torchrun internvl1.5_2nd_finetune_full \
  --model_name_or_path "$ROOT/pretrained/Mini-InternVL-Chat-2B-V1-5" \
  --weight_decay 0.01 \
  "$@"
