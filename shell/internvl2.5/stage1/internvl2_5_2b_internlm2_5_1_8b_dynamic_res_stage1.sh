#!/bin/sh
# InternVL2.5-2B, stage 1: the projector trains; InternViT-300M-448px-V2_5 + internlm2_5-1_8b-chat.
# 512 GPUs x 1 pack = batch 512 packs; 100000 steps at most. Your data: --meta_path.
ROOT=$(readlink -f -- "$0") && ROOT=${ROOT%/shell/*} && . "$ROOT/shell/lib/run.sh"

defaults GPUS=512 BATCH_SIZE=512 PER_DEVICE_BATCH_SIZE=1 \
  OUTPUT_DIR="$ROOT/work_dirs/internvl_chat_v2_5/internvl2_5_2b_internlm2_5_1_8b_dynamic_res_stage1"
launch srun internvl2.5_stage1 \
  --vision_path "$ROOT/pretrained/InternViT-300M-448px-V2_5" \
  --llm_path "$ROOT/pretrained/internlm2_5-1_8b-chat" \
  --weight_decay 0.01 \
  "$@"
