#!/bin/sh
# InternVL-Chat-V1-5 (26B), from parts, first training: vision tower and projector train.
# 256 GPUs x 4 samples x 2 accumulated = batch 2048; one epoch. Your data: --meta_path.
ROOT=$(readlink -f -- "$0") && ROOT=${ROOT%/shell/*} && . "$ROOT/shell/lib/run.sh"

defaults GPUS=256 BATCH_SIZE=2048 PER_DEVICE_BATCH_SIZE=4 \
  OUTPUT_DIR="$ROOT/work_dirs/internvl_chat_v1_5/internvl_chat_v1_5_internlm2_20b_dynamic_res_pretrain"
launch srun internvl1.5_pretrain \
  --vision_path "$ROOT/pretrained/InternViT-6B-448px-V1-5" \
  --llm_path "$ROOT/pretrained/internlm2-chat-20b" \
  --deepspeed zero3 \
  --freeze_backbone False \
  --drop_path_rate 0.2 \
  --learning_rate 1e-5 \
  "$@"
