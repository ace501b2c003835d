#!/bin/sh
# InternVL2.5-78B, stage 2: all of the model trains; InternViT-6B-448px-V2_5 + Qwen2.5-72B-Instruct.
# 512 GPUs x 1 pack = batch 512 packs; 5500 steps, the data once. Your data: --meta_path.
ROOT=$(readlink -f -- "$0") && ROOT=${ROOT%/shell/*} && . "$ROOT/shell/lib/run.sh"

defaults GPUS=512 BATCH_SIZE=512 PER_DEVICE_BATCH_SIZE=1 \
  OUTPUT_DIR="$ROOT/work_dirs/internvl_chat_v2_5/internvl2_5_78b_qwen2_5_72b_dynamic_res_stage2"
launch srun internvl2.5_stage2 \
  --model_name_or_path "$ROOT/work_dirs/internvl_chat_v2_5/internvl2_5_78b_qwen2_5_72b_dynamic_res_stage1" \
  --deepspeed zero3 \
  --drop_path_rate 0.4 \
  --learning_rate 2e-5 \
  "$@"
