#!/bin/sh
# Mini-InternVL-Chat-2B-V1-5, from parts, first training: vision tower and projector train.
# 128 GPUs x 8 samples x 2 accumulated = batch 2048; one epoch. Your data: --meta_path.
ROOT=$(readlink -f -- "$0") && ROOT=${ROOT%/shell/*} && . "$ROOT/shell/lib/run.sh"

defaults GPUS=128 BATCH_SIZE=2048 PER_DEVICE_BATCH_SIZE=8 \
  OUTPUT_DIR="$ROOT/work_dirs/internvl_chat_v1_5/internvl_chat_v1_5_internlm2_1_8b_dynamic_res_pretrain"
launch srun internvl1.5_pretrain \
  --vision_path "$ROOT/pretrained/InternViT-300M-448px" \
  --llm_path "$ROOT/pretrained/internlm2-chat-1_8b" \
  --freeze_backbone False \
  --drop_path_rate 0.1 \
  --learning_rate 2e-5 \
  --weight_decay 0.01 \
  "$@"
