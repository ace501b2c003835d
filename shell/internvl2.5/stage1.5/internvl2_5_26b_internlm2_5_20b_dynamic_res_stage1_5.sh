#!/bin/sh
# InternVL2.5-26B, stage 1.5: vision tower and projector train; InternViT-6B-448px-V1-5 + internlm2_5-20b-chat.
# 512 GPUs x 1 pack x 2 accumulated = batch 1024 packs; 100000 steps at most. Your data: --meta_path.
ROOT=$(readlink -f -- "$0") && ROOT=${ROOT%/shell/*} && . "$ROOT/shell/lib/run.sh"

defaults GPUS=512 BATCH_SIZE=1024 PER_DEVICE_BATCH_SIZE=1 \
  OUTPUT_DIR="$ROOT/work_dirs/internvl_chat_v2_5/internvl2_5_26b_internlm2_5_20b_dynamic_res_stage1_5"
launch srun internvl2.5_stage1.5 \
  --model_name_or_path "$ROOT/work_dirs/internvl_chat_v2_5/internvl2_5_26b_internlm2_5_20b_dynamic_res_stage1" \
  "$@"
