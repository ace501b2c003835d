#!/bin/sh
# InternVL2.5-26B, stage 2: all of the model trains; InternViT-6B-448px-V2_5 + internlm2_5-20b-chat.
# 512 GPUs x 1 pack = batch 512 packs; 5500 steps, the data once. Your data: --meta_path.
ROOT=$(readlink -f -- "$0") && ROOT=${ROOT%/shell/*} && . "$ROOT/shell/lib/run.sh"

defaults GPUS=512 BATCH_SIZE=512 PER_DEVICE_BATCH_SIZE=1 \
  OUTPUT_DIR="$ROOT/work_dirs/internvl_chat_v2_5/internvl2_5_26b_internlm2_5_20b_dynamic_res_stage2"
launch srun internvl2.5_stage2 \
  --model_name_or_path "$ROOT/work_dirs/internvl_chat_v2_5/internvl2_5_26b_internlm2_5_20b_dynamic_res_stage1_5" \
  --deepspeed zero3 \
  --drop_path_rate 0.4 \
  --learning_rate 2e-5 \
  "$@"
