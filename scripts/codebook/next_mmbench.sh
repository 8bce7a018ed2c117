#!/usr/bin/env bash
# LLaVA-NeXT on MMBench-EN dev; letters that cannot be read want a GPT.
# Usage: next_mmbench.sh codebook.safetensors|random|all [keep] [checkpoint] [flags of lmms-eval]
# Defaults: theta=0.11 llava-hf/llama3-llava-next-8b-hf
source "$(dirname "${BASH_SOURCE[0]}")/codebook_common.sh"
ARGS=conv_template=llava_llama_3
evaluate llava-v1.6-mob llava-hf/llama3-llava-next-8b-hf 0.11 mmbench_en_dev "$@"
