#!/bin/sh
# InternVL-Chat-V1-2-Plus, second fine-tuning: language model and projector train, the vision tower is frozen.
# 16 GPUs x 4 samples x 2 accumulated = batch 128; one epoch.
ROOT=$(readlink -f -- "$0") && ROOT=${ROOT%/shell/*} && . "$ROOT/shell/lib/run.sh"

defaults GPUS=16 BATCH_SIZE=128 PER_DEVICE_BATCH_SIZE=4 \
  OUTPUT_DIR="$ROOT/work_dirs/internvl_chat_v1_2/internvl_chat_v1_2_hermes2_yi34b_448_res_2nd_finetune_full"
launch srun internvl1.2_2nd_finetune_full \
  --model_name_or_path "$ROOT/pretrained/InternVL-Chat-V1-2-Plus" \
  "$@"
