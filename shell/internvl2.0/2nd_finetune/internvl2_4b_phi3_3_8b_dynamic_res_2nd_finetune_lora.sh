#!/bin/sh
# InternVL2-4B, second fine-tuning: LoRA of rank 16 in the language model, all else is frozen.
# 2 GPUs x 4 samples x 2 accumulated = batch 16; one epoch.
ROOT=$(readlink -f -- "$0") && ROOT=${ROOT%/shell/*} && . "$ROOT/shell/lib/run.sh"

defaults GPUS=2 BATCH_SIZE=16 PER_DEVICE_BATCH_SIZE=4 \
  OUTPUT_DIR="$ROOT/work_dirs/internvl_chat_v2_0/internvl2_4b_phi3_3_8b_dynamic_res_2nd_finetune_lora"
launch torchrun internvl2.0_2nd_finetune_lora \
  --model_name_or_path "$ROOT/pretrained/InternVL2-4B" \
  --conv_style phi3-chat \
  "$@"
