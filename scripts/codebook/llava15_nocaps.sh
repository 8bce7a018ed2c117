#!/usr/bin/env bash
# LLaVA-1.5 on NoCaps val: CIDEr.
# Usage: llava15_nocaps.sh codebook.safetensors|random|all [keep] [checkpoint] [flags of lmms-eval]
# Defaults: theta=0.45 liuhaotian/llava-v1.5-7b
source "$(dirname "${BASH_SOURCE[0]}")/codebook_common.sh"
evaluate llava-v1.5-mob liuhaotian/llava-v1.5-7b 0.45 nocaps_val "$@"
