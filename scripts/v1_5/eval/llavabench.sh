#!/usr/bin/env bash
# LLaVA-Bench in the wild: answers only; they are judged by GPT-4 elsewhere.
# Usage: llavabench.sh [K] [checkpoint] [flags of the asking command]      (64 liuhaotian/llava-v1.5-7b; see eval_common.sh)
source "$(dirname "${BASH_SOURCE[0]}")/../../eval_common.sh"
settings "${default_K:-64}" "${default_checkpoint:-liuhaotian/llava-v1.5-7b}" "$@"

place=$data/llava-bench-in-the-wild
ask llava.eval.model_vqa "$place/answers/$label.jsonl" \
  --question-file "$place/questions.jsonl" --image-folder "$place/images"
