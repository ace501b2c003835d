#!/bin/sh
# InternVL2_5-78B, second fine-tuning: LoRA of rank 16 in the language model, all else is frozen.
# 8 GPUs x 1 sample x 2 accumulated = batch 16; one epoch.
ROOT=$(readlink -f -- "$0") && ROOT=${ROOT%/shell/*} && . "$ROOT/shell/lib/run.sh"

defaults GPUS=8 BATCH_SIZE=16 PER_DEVICE_BATCH_SIZE=1 \
  OUTPUT_DIR="$ROOT/work_dirs/internvl_chat_v2_5/internvl2_5_78b_dynamic_res_2nd_finetune_lora"
launch torchrun internvl2.5_2nd_finetune_lora \
  --model_name_or_path "$(model InternVL2_5-78B)" \
  --deepspeed zero3 \
  --learning_rate 2e-5 \
  --weight_decay 0.05 \
  "$@"
