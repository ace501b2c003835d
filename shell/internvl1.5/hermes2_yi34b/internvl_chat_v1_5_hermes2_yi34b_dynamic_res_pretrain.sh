#!/bin/sh
# InternVL-Chat-V1-5 with Nous-Hermes-2-Yi-34B, from parts, first training: the projector trains.
# 256 GPUs x 2 samples x 4 accumulated = batch 2048; one epoch. Your data: --meta_path.
ROOT=$(readlink -f -- "$0") && ROOT=${ROOT%/shell/*} && . "$ROOT/shell/lib/run.sh"

defaults GPUS=256 BATCH_SIZE=2048 PER_DEVICE_BATCH_SIZE=2 \
  OUTPUT_DIR="$ROOT/work_dirs/internvl_chat_v1_5/internvl_chat_v1_5_hermes2_yi34b_dynamic_res_pretrain"
launch srun internvl1.5_pretrain \
  --vision_path "$ROOT/pretrained/InternViT-6B-448px-V1-5" \
  --mlp_path "$ROOT/pretrained/InternViT-6B-448px-V1-2/mlp_projector/hermes_2_yi_34b.pth" \
  --llm_path "$ROOT/pretrained/Nous-Hermes-2-Yi-34B" \
  --conv_style Hermes-2 \
  --deepspeed zero3 \
  --learning_rate 1e-4 \
  "$@"
