#!/usr/bin/env bash
# VQAv2 test-dev: the file for its server.
# Usage: vqav2.sh [K] [checkpoint] [flags of the asking command]      (64 liuhaotian/llava-v1.5-7b; see eval_common.sh)
source "$(dirname "${BASH_SOURCE[0]}")/../../eval_common.sh"
settings "${default_K:-64}" "${default_checkpoint:-liuhaotian/llava-v1.5-7b}" "$@"

split=llava_vqav2_mscoco_test-dev2015
ask llava.eval.model_vqa_loader "$data/vqav2/answers/$split/$label/merge.jsonl" \
  --question-file "$data/vqav2/$split.jsonl" --image-folder "$data/vqav2/test2015"
run llava.eval.convert vqav2 --dir "$data/vqav2" --split "$split" --ckpt "$label"
