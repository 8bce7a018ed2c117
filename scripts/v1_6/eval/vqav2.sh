#!/usr/bin/env bash
# VQAv2 test-dev: the file for its server.
# Usage: vqav2.sh [K] [checkpoint] [flags of the asking command]      (320 liuhaotian/llava-v1.6-vicuna-7b)
export default_K=320 default_checkpoint=liuhaotian/llava-v1.6-vicuna-7b
exec bash "$(dirname "${BASH_SOURCE[0]}")/../../v1_5/eval/vqav2.sh" "$@"
