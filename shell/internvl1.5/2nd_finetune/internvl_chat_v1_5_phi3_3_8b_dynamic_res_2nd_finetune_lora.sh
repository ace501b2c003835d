#!/bin/sh
# Mini-InternVL-Chat-4B-V1-5, second fine-tuning: LoRA of rank 16 in the language model, all else is frozen.
# 2 GPUs x 4 samples x 2 accumulated = batch 16; one epoch.
ROOT=$(readlink -f -- "$0") && ROOT=${ROOT%/shell/*} && . "$ROOT/shell/lib/run.sh"

defaults GPUS=2 BATCH_SIZE=16 PER_DEVICE_BATCH_SIZE=4 \
  OUTPUT_DIR="$ROOT/work_dirs/internvl_chat_v1_5/internvl_chat_v1_5_phi3_3_8b_dynamic_res_2nd_finetune_lora"
launch torchrun internvl1.5_2nd_finetune_lora \
  --model_name_or_path "$ROOT/pretrained/Mini-InternVL-Chat-4B-V1-5" \
  --conv_style phi3-chat \
  "$@"
