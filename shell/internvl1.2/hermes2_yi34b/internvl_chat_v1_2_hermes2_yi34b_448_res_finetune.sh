#!/bin/sh
# InternVL-Chat-V1-2 (40B) from parts: all of the model trains.
# 64 GPUs x 8 samples = batch 512; one epoch.
ROOT=$(readlink -f -- "$0") && ROOT=${ROOT%/shell/*} && . "$ROOT/shell/lib/run.sh"

defaults GPUS=64 BATCH_SIZE=512 PER_DEVICE_BATCH_SIZE=8 \
  OUTPUT_DIR="$ROOT/work_dirs/internvl_chat_v1_2/internvl_chat_v1_2_hermes2_yi34b_448_res_finetune"
launch srun internvl1.2_finetune \
  --vision_path "$ROOT/pretrained/InternViT-6B-448px-V1-2" \
  --mlp_path "$ROOT/pretrained/InternViT-6B-448px-V1-2/mlp_projector/hermes_2_yi_34b.pth" \
  --llm_path "$ROOT/pretrained/Nous-Hermes-2-Yi-34B" \
  "$@"
