#!/usr/bin/env bash
# ScienceQA test: accuracy, and that of the questions with a picture.
# Usage: sqa.sh [K] [checkpoint] [flags of the asking command]      (64 liuhaotian/llava-v1.5-7b; see eval_common.sh)
source "$(dirname "${BASH_SOURCE[0]}")/../../eval_common.sh"
settings "${default_K:-64}" "${default_checkpoint:-liuhaotian/llava-v1.5-7b}" "$@"

place=$data/scienceqa
ask llava.eval.model_vqa_science "$place/answers/$label.jsonl" --single-pred-prompt \
  --question-file "$place/llava_test_CQM-A.json" --image-folder "$place/images/test"
run llava.eval.eval_science_qa --base-dir "$place" --result-file "$place/answers/$label.jsonl" \
  --output-file "$place/answers/${label}_output.json" --output-result "$place/answers/${label}_result.json"
