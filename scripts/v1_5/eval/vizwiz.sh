#!/usr/bin/env bash
# VizWiz test: the file for its server.
# Usage: vizwiz.sh [K] [checkpoint] [flags of the asking command]      (64 liuhaotian/llava-v1.5-7b; see eval_common.sh)
source "$(dirname "${BASH_SOURCE[0]}")/../../eval_common.sh"
settings "${default_K:-64}" "${default_checkpoint:-liuhaotian/llava-v1.5-7b}" "$@"

place=$data/vizwiz
ask llava.eval.model_vqa_loader "$place/answers/$label.jsonl" \
  --question-file "$place/llava_test.jsonl" --image-folder "$place/test"
run llava.eval.convert vizwiz --annotation-file "$place/llava_test.jsonl" \
  --result-file "$place/answers/$label.jsonl" --result-upload-file "$place/answers_upload/$label.json"
