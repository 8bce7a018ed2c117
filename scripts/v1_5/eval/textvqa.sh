#!/usr/bin/env bash
# TextVQA val, with OCR tokens in the prompts: soft accuracy.
# Usage: textvqa.sh [K] [checkpoint] [flags of the asking command]      (64 liuhaotian/llava-v1.5-7b; see eval_common.sh)
source "$(dirname "${BASH_SOURCE[0]}")/../../eval_common.sh"
settings "${default_K:-64}" "${default_checkpoint:-liuhaotian/llava-v1.5-7b}" "$@"

place=$data/textvqa
ask llava.eval.model_vqa_loader "$place/answers/$label.jsonl" \
  --question-file "$place/llava_textvqa_val_v051_ocr.jsonl" --image-folder "$place/train_images"
run llava.eval.eval_textvqa --annotation-file "$place/TextVQA_0.5.1_val.json" --result-file "$place/answers/$label.jsonl"
