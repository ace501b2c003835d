#!/bin/sh
# Mini-InternVL-Chat-4B-V1-5, from parts, first training: the projector trains.
# 128 GPUs x 8 samples x 2 accumulated = batch 2048; one epoch. Your data: --meta_path.
ROOT=$(readlink -f -- "$0") && ROOT=${ROOT%/shell/*} && . "$ROOT/shell/lib/run.sh"

defaults GPUS=128 BATCH_SIZE=2048 PER_DEVICE_BATCH_SIZE=8 \
  OUTPUT_DIR="$ROOT/work_dirs/internvl_chat_v1_5/internvl_chat_v1_5_phi3_3_8b_dynamic_res_pretrain"
launch srun internvl1.5_pretrain \
  --vision_path "$ROOT/pretrained/InternViT-300M-448px" \
  --llm_path "$ROOT/pretrained/Phi-3-mini-128k-instruct" \
  --conv_style phi3-chat \
  --learning_rate 2e-4 \
  "$@"
