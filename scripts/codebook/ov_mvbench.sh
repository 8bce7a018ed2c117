#!/usr/bin/env bash
# LLaVA-OneVision on MVBench, 20 tasks on videos of 16 frames: accuracy.
# Usage: ov_mvbench.sh codebook.safetensors|random|all [keep] [checkpoint] [flags of lmms-eval]
# Defaults: theta=0.5 llava-hf/llava-onevision-qwen2-7b-ov-hf
source "$(dirname "${BASH_SOURCE[0]}")/codebook_common.sh"
ARGS=frames=16
evaluate llava-onevision-mob llava-hf/llava-onevision-qwen2-7b-ov-hf 0.5 mvbench "$@"
