# shellcheck shell=bash
# Shared by the scripts of this folder; sourced, not run. Data as in Video-LLaVA's eval.zip, in
# $MOB_EVAL_DATA/GPT_Zero_Shot_QA. Papers report the accuracy that a GPT gives, which is another number:
#   python -m llava_next.eval.eval_video_qa --pred-path ANSWERS --judge openai --judge-model MODEL
source "$(dirname "${BASH_SOURCE[0]}")/../eval_common.sh"

video_qa() { # video_qa BENCHMARK VIDEOS [K] [checkpoint] [flags...]
  local place=$data/GPT_Zero_Shot_QA/$1 videos=$2
  shift 2
  default_conv=own # each family's own
  settings 136 LanguageBind/Video-LLaVA-7B-hf "$@"
  ask llava_next.eval.video_qa "$place/answers/$label.json" --video-dir "$place/$videos" \
    --gt-file-question "$place/test_q.json" --gt-file-answers "$place/test_a.json"
  run llava_next.eval.eval_video_qa --pred-path "$place/answers/$label.json"
}
