#!/usr/bin/env bash
# MME: perception and cognition.
# Usage: mme.sh [K] [checkpoint] [flags of the asking command]      (64 liuhaotian/llava-v1.5-7b; see eval_common.sh)
source "$(dirname "${BASH_SOURCE[0]}")/../../eval_common.sh"
settings "${default_K:-64}" "${default_checkpoint:-liuhaotian/llava-v1.5-7b}" "$@"

answers=$data/MME/answers/$label.jsonl
ask llava.eval.model_vqa_loader "$answers" \
  --question-file "$data/MME/llava_mme.jsonl" --image-folder "$data/MME/MME_Benchmark_release_version"
run llava.eval.eval_mme --benchmark-dir "$data/MME/MME_Benchmark_release_version" --result-file "$answers"
