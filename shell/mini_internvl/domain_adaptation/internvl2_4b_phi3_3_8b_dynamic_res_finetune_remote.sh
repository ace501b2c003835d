#!/bin/sh
# InternVL2-4B for remote sensing: all of the model trains.
# 8 GPUs x 1 pack x 8 accumulated = batch 64 packs; 2500 steps.
ROOT=$(readlink -f -- "$0") && ROOT=${ROOT%/shell/*} && . "$ROOT/shell/lib/run.sh"

defaults GPUS=8 BATCH_SIZE=64 PER_DEVICE_BATCH_SIZE=1 \
  OUTPUT_DIR="$ROOT/work_dirs/domain_adaptation/internvl2_4b_phi3_3_8b_dynamic_res_finetune_remote"
launch srun domain_adaptation_remote \
  --model_name_or_path "$ROOT/pretrained/InternVL2-4B" \
  --conv_style phi3-chat \
  --save_steps 700 \
  "$@"
