#!/bin/sh
# InternVL-Chat-V1-5 with Nous-Hermes-2-Yi-34B, fine-tuning of what the pretraining script has made: all of the model
# trains.
# 256 GPUs x 4 samples = batch 1024; one epoch. Your data: --meta_path.
ROOT=$(readlink -f -- "$0") && ROOT=${ROOT%/shell/*} && . "$ROOT/shell/lib/run.sh"

defaults GPUS=256 BATCH_SIZE=1024 PER_DEVICE_BATCH_SIZE=4 \
  OUTPUT_DIR="$ROOT/work_dirs/internvl_chat_v1_5/internvl_chat_v1_5_hermes2_yi34b_dynamic_res_finetune"
launch srun internvl1.5_finetune \
  --model_name_or_path "$ROOT/work_dirs/internvl_chat_v1_5/internvl_chat_v1_5_hermes2_yi34b_dynamic_res_pretrain" \
  --conv_style Hermes-2 \
  --deepspeed zero3 \
  "$@"
