#!/bin/sh
# InternVL2-26B, second fine-tuning: LoRA of rank 16 in the language model, all else is frozen.
# 2 GPUs x 2 samples x 4 accumulated = batch 16; one epoch.
ROOT=$(readlink -f -- "$0") && ROOT=${ROOT%/shell/*} && . "$ROOT/shell/lib/run.sh"

defaults GPUS=2 BATCH_SIZE=16 PER_DEVICE_BATCH_SIZE=2 \
  OUTPUT_DIR="$ROOT/work_dirs/internvl_chat_v2_0/internvl2_26b_internlm2_20b_dynamic_res_2nd_finetune_lora"
launch torchrun internvl2.0_2nd_finetune_lora \
  --model_name_or_path "$ROOT/pretrained/InternVL2-26B" \
  --deepspeed zero3 \
  --learning_rate 2e-5 \
  --weight_decay 0.05 \
  "$@"
