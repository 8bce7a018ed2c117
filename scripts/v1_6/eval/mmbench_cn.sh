#!/usr/bin/env bash
# MMBench-CN dev: accuracy of the letters, and the spreadsheet for its server.
# Usage: mmbench_cn.sh [K] [checkpoint] [flags of the asking command]      (320 liuhaotian/llava-v1.6-vicuna-7b)
export default_K=320 default_checkpoint=liuhaotian/llava-v1.6-vicuna-7b
exec bash "$(dirname "${BASH_SOURCE[0]}")/../../v1_5/eval/mmbench_cn.sh" "$@"
