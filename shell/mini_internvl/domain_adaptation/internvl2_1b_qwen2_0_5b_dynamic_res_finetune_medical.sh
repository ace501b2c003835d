#!/bin/sh
# InternVL2-1B for medical pictures: all of the model trains.
# 8 GPUs x 1 pack x 8 accumulated = batch 64 packs; 2200 steps.
ROOT=$(readlink -f -- "$0") && ROOT=${ROOT%/shell/*} && . "$ROOT/shell/lib/run.sh"

defaults GPUS=8 BATCH_SIZE=64 PER_DEVICE_BATCH_SIZE=1 \
  OUTPUT_DIR="$ROOT/work_dirs/domain_adaptation/internvl2_1b_qwen2_0_5b_dynamic_res_finetune_medical"
launch srun domain_adaptation_medical \
  --model_name_or_path "$ROOT/pretrained/InternVL2-1B" \
  --conv_style Hermes-2 \
  "$@"
