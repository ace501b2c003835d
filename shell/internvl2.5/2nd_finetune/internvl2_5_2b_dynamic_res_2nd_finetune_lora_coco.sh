#!/bin/sh
# InternVL2_5-2B, second fine-tuning on COCO captions: LoRA of rank 128 in the language model, all else is frozen.
# 8 GPUs x 4 samples x 16 accumulated = batch 512; one epoch.
ROOT=$(readlink -f -- "$0") && ROOT=${ROOT%/shell/*} && . "$ROOT/shell/lib/run.sh"

defaults GPUS=8 BATCH_SIZE=512 PER_DEVICE_BATCH_SIZE=4 \
  OUTPUT_DIR="$ROOT/work_dirs/internvl_chat_v2_5/internvl2_5_2b_dynamic_res_2nd_finetune_lora_coco"
launch torchrun internvl2.5_2nd_finetune_lora \
  --model_name_or_path "$(model InternVL2_5-2B)" \
  --meta_path "$ROOT/shell/data/coco_caption.json" \
  --use_llm_lora 128 \
  "$@"
