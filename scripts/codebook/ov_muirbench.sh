#!/usr/bin/env bash
# LLaVA-OneVision on MUIRBench, several pictures: accuracy.
# Usage: ov_muirbench.sh codebook.safetensors|random|all [keep] [checkpoint] [flags of lmms-eval]
# Defaults: theta=0.5 llava-hf/llava-onevision-qwen2-7b-ov-hf
source "$(dirname "${BASH_SOURCE[0]}")/codebook_common.sh"
evaluate llava-onevision-mob llava-hf/llava-onevision-qwen2-7b-ov-hf 0.5 muirbench "$@"
