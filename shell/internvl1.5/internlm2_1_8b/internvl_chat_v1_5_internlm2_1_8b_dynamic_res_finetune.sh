#!/bin/sh
# Mini-InternVL-Chat-2B-V1-5, fine-tuning of what the pretraining script has made: all of the model trains.
# 128 GPUs x 4 samples x 2 accumulated = batch 1024; one epoch. Your data: --meta_path.
ROOT=$(readlink -f -- "$0") && ROOT=${ROOT%/shell/*} && . "$ROOT/shell/lib/run.sh"

defaults GPUS=128 BATCH_SIZE=1024 PER_DEVICE_BATCH_SIZE=4 \
  OUTPUT_DIR="$ROOT/work_dirs/internvl_chat_v1_5/internvl_chat_v1_5_internlm2_1_8b_dynamic_res_finetune"
launch srun internvl1.5_finetune \
  --model_name_or_path "$ROOT/work_dirs/internvl_chat_v1_5/internvl_chat_v1_5_internlm2_1_8b_dynamic_res_pretrain" \
  --max_seq_length 8192 \
  --drop_path_rate 0.1 \
  --learning_rate 4e-5 \
  --weight_decay 0.01 \
  "$@"
