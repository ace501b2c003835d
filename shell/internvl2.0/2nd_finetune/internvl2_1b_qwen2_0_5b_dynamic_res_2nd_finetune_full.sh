#!/bin/sh
# InternVL2-1B, second fine-tuning: language model and projector train, the vision tower is frozen.
# 8 GPUs x 4 samples x 4 accumulated = batch 128; one epoch.
ROOT=$(readlink -f -- "$0") && ROOT=${ROOT%/shell/*} && . "$ROOT/shell/lib/run.sh"

defaults GPUS=8 BATCH_SIZE=128 PER_DEVICE_BATCH_SIZE=4 \
  OUTPUT_DIR="$ROOT/work_dirs/internvl_chat_v2_0/internvl2_1b_qwen2_0_5b_dynamic_res_2nd_finetune_full"
launch torchrun internvl2.0_2nd_finetune_full \
  --model_name_or_path "$ROOT/pretrained/InternVL2-1B" \
  --conv_style Hermes-2 \
  --weight_decay 0.01 \
  "$@"
