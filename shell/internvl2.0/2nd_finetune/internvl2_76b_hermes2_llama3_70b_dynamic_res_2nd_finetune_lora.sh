#!/bin/sh
# InternVL2-Llama3-76B, second fine-tuning: LoRA of rank 16 in the language model, all else is frozen.
# 8 GPUs x 1 sample x 2 accumulated = batch 16; one epoch.
ROOT=$(readlink -f -- "$0") && ROOT=${ROOT%/shell/*} && . "$ROOT/shell/lib/run.sh"

defaults GPUS=8 BATCH_SIZE=16 PER_DEVICE_BATCH_SIZE=1 \
  OUTPUT_DIR="$ROOT/work_dirs/internvl_chat_v2_0/internvl2_76b_hermes2_llama3_70b_dynamic_res_2nd_finetune_lora"
launch torchrun internvl2.0_2nd_finetune_lora \
  --model_name_or_path "$ROOT/pretrained/InternVL2-Llama3-76B" \
  --deepspeed zero3 \
  --learning_rate 2e-5 \
  --weight_decay 0.05 \
  "$@"
