#!/usr/bin/env bash
# First stage of LLaVA-1.5: the projector alone learns captions (8 x A100, total batch 256).
# Needs LLaVA-Pretrain under playground/data; MODEL=lmsys/vicuna-7b-v1.5 for the smaller one.
# LAUNCH, DEEPSPEED and what the flags mean: train_common.sh. Flags given to this script come last and win.
set -euo pipefail
source "$(dirname "$0")/train_common.sh"

train zero2 \
  --model_name_or_path "${MODEL:-lmsys/vicuna-13b-v1.5}" \
  --version plain \
  --data_path ./playground/data/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json \
  --image_folder ./playground/data/LLaVA-Pretrain/images \
  --tune_mm_mlp_adapter True \
  --per_device_train_batch_size 32 \
  --learning_rate 1e-3 \
  --save_steps 24000 \
  --save_format original \
  --output_dir ./checkpoints/llava-v1.5-13b-pretrain \
  "$@"
