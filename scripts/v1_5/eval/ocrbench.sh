#!/usr/bin/env bash
# OCRBench: right answers of 1000.
# Usage: ocrbench.sh [K] [checkpoint] [flags of the asking command]      (64 liuhaotian/llava-v1.5-7b; see eval_common.sh)
source "$(dirname "${BASH_SOURCE[0]}")/../../eval_common.sh"
settings "${default_K:-64}" "${default_checkpoint:-liuhaotian/llava-v1.5-7b}" "$@"

place=$data/ocrbench
run llava.eval.convert ocrbench --src "$place/OCRBench.json" --dst "$place/llava_ocrbench.jsonl"
ask llava.eval.model_vqa_loader "$place/answers/$label.jsonl" \
  --question-file "$place/llava_ocrbench.jsonl" --image-folder "$place/OCRBench_Images"
run llava.eval.eval_ocrbench --annotation-file "$place/OCRBench.json" --result-file "$place/answers/$label.jsonl"
