#!/usr/bin/env bash
# Second stage of LLaVA-1.5: projector and language model learn to follow instructions (8 x A100, total batch 128).
# Needs the projector of pretrain.sh, llava_v1_5_mix665k.json and its pictures under playground/data.
# LAUNCH, DEEPSPEED and what the flags mean: train_common.sh. Flags given to this script come last and win.
set -euo pipefail
source "$(dirname "$0")/train_common.sh"

train zero3 "${second_stage[@]}" "${on_instructions[@]}" "${whole[@]}" --output_dir ./checkpoints/llava-v1.5-13b "$@"
