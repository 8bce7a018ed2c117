#!/usr/bin/env bash
# MM-Vet: answers, and the file for its server, where GPT-4 judges.
# Usage: mmvet.sh [K] [checkpoint] [flags of the asking command]      (320 liuhaotian/llava-v1.6-vicuna-7b)
export default_K=320 default_checkpoint=liuhaotian/llava-v1.6-vicuna-7b
exec bash "$(dirname "${BASH_SOURCE[0]}")/../../v1_5/eval/mmvet.sh" "$@"
