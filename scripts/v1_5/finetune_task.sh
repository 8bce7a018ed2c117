#!/usr/bin/env bash
# LLaVA-1.5 on data of your own, starting from the finished model.
# DATA and IMAGES name the data file and the folder of its pictures.
# LAUNCH, DEEPSPEED and what the flags mean: train_common.sh. Flags given to this script come last and win.
set -euo pipefail
source "$(dirname "$0")/train_common.sh"

train zero3 "${second_stage[@]}" "${on_own_data[@]}" "${whole[@]}" --output_dir ./checkpoints/llava-v1.5-13b-task "$@"
