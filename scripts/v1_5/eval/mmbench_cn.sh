#!/usr/bin/env bash
# MMBench-CN dev: accuracy of the letters, and the spreadsheet for its server.
# Usage: mmbench_cn.sh [K] [checkpoint] [flags of the asking command]      (64 liuhaotian/llava-v1.5-7b; see eval_common.sh)
source "$(dirname "${BASH_SOURCE[0]}")/../../eval_common.sh"
settings "${default_K:-64}" "${default_checkpoint:-liuhaotian/llava-v1.5-7b}" "$@"

split=mmbench_dev_cn_20231003
place=$data/mmbench_cn
ask llava.eval.model_vqa_mmbench "$place/answers/$split/$label.jsonl" \
  --question-file "$place/$split.tsv" --single-pred-prompt --lang cn
run llava.eval.convert mmbench --annotation-file "$place/$split.tsv" --result-dir "$place/answers/$split" \
  --upload-dir "$place/answers_upload/$split" --experiment "$label"
run llava.eval.eval_mmbench --annotation-file "$place/$split.tsv" --result-file "$place/answers/$split/$label.jsonl"
