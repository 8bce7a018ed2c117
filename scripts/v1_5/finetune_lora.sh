#!/usr/bin/env bash
# Second stage of LLaVA-1.5 with LoRA on the language model (8 x A100, total batch 128).
# Needs what finetune.sh needs; scripts/merge_lora_weights.py makes a whole model of the result.
# LAUNCH, DEEPSPEED and what the flags mean: train_common.sh. Flags given to this script come last and win.
set -euo pipefail
source "$(dirname "$0")/train_common.sh"

train zero3 "${second_stage[@]}" "${on_instructions[@]}" "${lora[@]}" --output_dir ./checkpoints/llava-v1.5-13b-lora "$@"
