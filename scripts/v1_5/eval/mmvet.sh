#!/usr/bin/env bash
# MM-Vet: answers, and the file for its server, where GPT-4 judges.
# Usage: mmvet.sh [K] [checkpoint] [flags of the asking command]      (64 liuhaotian/llava-v1.5-7b; see eval_common.sh)
source "$(dirname "${BASH_SOURCE[0]}")/../../eval_common.sh"
settings "${default_K:-64}" "${default_checkpoint:-liuhaotian/llava-v1.5-7b}" "$@"

place=$data/mm-vet
ask llava.eval.model_vqa "$place/answers/$label.jsonl" \
  --question-file "$place/llava-mm-vet.jsonl" --image-folder "$place/images"
run llava.eval.convert mmvet --src "$place/answers/$label.jsonl" --dst "$place/results/$label.json"
