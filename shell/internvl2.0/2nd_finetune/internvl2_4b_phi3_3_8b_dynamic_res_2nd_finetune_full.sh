#!/bin/sh
# InternVL2-4B, second fine-tuning: language model and projector train, the vision tower is frozen.
# 8 GPUs x 4 samples x 4 accumulated = batch 128; one epoch.
ROOT=$(readlink -f -- "$0") && ROOT=${ROOT%/shell/*} && . "$ROOT/shell/lib/run.sh"

defaults GPUS=8 BATCH_SIZE=128 PER_DEVICE_BATCH_SIZE=4 \
  OUTPUT_DIR="$ROOT/work_dirs/internvl_chat_v2_0/internvl2_4b_phi3_3_8b_dynamic_res_2nd_finetune_full"
launch torchrun internvl2.0_2nd_finetune_full \
  --model_name_or_path "$ROOT/pretrained/InternVL2-4B" \
  --conv_style phi3-chat \
  --weight_decay 0.01 \
  "$@"
