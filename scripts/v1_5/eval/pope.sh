#!/usr/bin/env bash
# POPE on COCO, random, popular and adversarial: F1.
# Usage: pope.sh [K] [checkpoint] [flags of the asking command]      (64 liuhaotian/llava-v1.5-7b; see eval_common.sh)
source "$(dirname "${BASH_SOURCE[0]}")/../../eval_common.sh"
settings "${default_K:-64}" "${default_checkpoint:-liuhaotian/llava-v1.5-7b}" "$@"

answers=$data/pope/answers/$label.jsonl
ask llava.eval.model_vqa_loader "$answers" \
  --question-file "$data/pope/llava_pope_test.jsonl" --image-folder "$data/pope/val2014"
run llava.eval.eval_pope --annotation-dir "$data/pope/coco" \
  --question-file "$data/pope/llava_pope_test.jsonl" --result-file "$answers"
