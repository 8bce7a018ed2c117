#!/usr/bin/env bash
# GQA, testdev balanced: accuracy.
# Usage: gqa.sh [K] [checkpoint] [flags of the asking command]      (64 liuhaotian/llava-v1.5-7b; see eval_common.sh)
source "$(dirname "${BASH_SOURCE[0]}")/../../eval_common.sh"
settings "${default_K:-64}" "${default_checkpoint:-liuhaotian/llava-v1.5-7b}" "$@"

answers=$data/gqa/answers/llava_gqa_testdev_balanced/$label.jsonl
predictions=$data/gqa/predictions/$label.json
ask llava.eval.model_vqa_loader "$answers" \
  --question-file "$data/gqa/llava_gqa_testdev_balanced.jsonl" --image-folder "$data/gqa/data/images"
run llava.eval.convert gqa --src "$answers" --dst "$predictions"
run llava.eval.eval_gqa --questions "$data/gqa/data/testdev_balanced_questions.json" --predictions "$predictions"
