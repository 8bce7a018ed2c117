# shellcheck shell=bash
# Shared by scripts/v1_5/eval, scripts/v1_6/eval and scripts/video; sourced, not run. A script names its defaults first:
#   source .../eval_common.sh && settings <K> <checkpoint> "$@"
#
# [K]           visual tokens to keep: a number, a share such as 0.25, or "all" for no pruning
# [checkpoint]  folder or hub name; "embedded" is the tiny one that ships with this repository
# further arguments go to the command that asks, such as --batch-size 8
#
# MOB_EVAL_DATA  root of the benchmarks' data (./playground/data/eval), laid out as in LLaVA's docs/Evaluation.md
# MOB_PYTHON     the Python to use (.venv of this repository if it is there, else python)
# MOB_CONV_MODE  conversation template; empty for the checkpoint's own
#
# CUDA_VISIBLE_DEVICES=0,1,2,3 splits the questions over the GPUs; --log-retained-patches kept.jsonl then writes
# kept-4_0.jsonl to kept-4_3.jsonl. An interrupted script continues when started again.
# Exit code 1: everything was scored, but some pictures could not be read. 2: wrong files or options.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck disable=SC2034 # the scripts use it
data=${MOB_EVAL_DATA:-./playground/data/eval}
python=${MOB_PYTHON:-$([ -x "$here/.venv/bin/python" ] && echo "$here/.venv/bin/python" || echo python)}
unread=0
trap 'code=$?; [ "$code" -ne 0 ] || exit "$unread"' EXIT

settings() { # settings K CHECKPOINT [K] [CHECKPOINT] [FLAGS...]: reads the arguments of a script, after its defaults
  local tokens=${3:-$1} checkpoint=${4:-$2} conv
  more=("${@:5}")
  case $tokens in
    all) options=(--mob-off) ;;
    *) options=(--mob-K "$tokens") ;;
  esac
  case ${default_conv-}$checkpoint in
    own* | embedded) conv= ;;
    *mistral*) conv=mistral_instruct ;;
    *v1.6-34b*) conv=chatml_direct ;;
    *) conv=vicuna_v1 ;;
  esac
  conv=${MOB_CONV_MODE-$conv}
  [ "$checkpoint" = embedded ] || options+=(--model-path "$checkpoint")
  [ -z "$conv" ] || options+=(--conv-mode "$conv")
  options+=(--temperature 0)
  # shellcheck disable=SC2034 # and this
  label=$(basename "$checkpoint")-K$tokens # what the files of this run are called
}

ask() { # ask MODULE ANSWERS ARGUMENTS...: one process for each GPU, their answers put together in the file ANSWERS
  local module=$1 answers=$2 gpus part pids=() parts=()
  shift 2
  IFS=, read -ra gpus <<<"${CUDA_VISIBLE_DEVICES:-}"
  if [ "${#gpus[@]}" -lt 2 ]; then
    "$python" -m "$module" --answers-file "$answers" "$@" "${options[@]}" ${more[@]+"${more[@]}"} || judge_exit $?
    return
  fi
  trap 'kill "${pids[@]}" 2>/dev/null || true; exit 130' INT TERM # a shell's background processes do not hear Ctrl-C
  for part in "${!gpus[@]}"; do
    parts+=("${answers%.*}/${#gpus[@]}_$part.jsonl")
    own_records "${#gpus[@]}_$part"
    CUDA_VISIBLE_DEVICES=${gpus[part]} "$python" -m "$module" --answers-file "${parts[part]}" \
      --num-chunks "${#gpus[@]}" --chunk-idx "$part" "$@" "${options[@]}" ${own[@]+"${own[@]}"} &
    pids+=($!)
  done
  local worst=0 pid
  for pid in "${pids[@]}"; do
    wait "$pid" || { code=$?; [ "$code" -le "$worst" ] || worst=$code; }
  done
  trap - INT TERM
  [ "$worst" -eq 0 ] || judge_exit "$worst"
  cat "${parts[@]}" >"$answers"
}

own_records() { # own_records PART: the user's flags with a file of --log-retained-patches for this process alone
  local word last=
  own=()
  for word in ${more[@]+"${more[@]}"}; do
    case $word in --log-retained-patches=*) word=${word%.jsonl}-$1.jsonl ;; esac
    [ "$last" != --log-retained-patches ] || word=${word%.jsonl}-$1.jsonl
    own+=("$word")
    last=$word
  done
}

judge_exit() { # 1 means pictures that could not be read: go on, and say so at the end
  [ "$1" -eq 1 ] || exit "$1"
  unread=1
}

run() { # run MODULE ARGUMENTS...
  "$python" -m "$@"
}
