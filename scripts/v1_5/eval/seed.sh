#!/usr/bin/env bash
# SEED-Bench, pictures and frames of videos: accuracy by kind of question.
# Usage: seed.sh [K] [checkpoint] [flags of the asking command]      (64 liuhaotian/llava-v1.5-7b; see eval_common.sh)
source "$(dirname "${BASH_SOURCE[0]}")/../../eval_common.sh"
settings "${default_K:-64}" "${default_checkpoint:-liuhaotian/llava-v1.5-7b}" "$@"

place=$data/seed_bench
ask llava.eval.model_vqa_loader "$place/answers/$label.jsonl" \
  --question-file "$place/llava-seed-bench.jsonl" --image-folder "$place"
run llava.eval.convert seed --annotation-file "$place/SEED-Bench.json" \
  --result-file "$place/answers/$label.jsonl" --result-upload-file "$place/answers_upload/$label.jsonl"
