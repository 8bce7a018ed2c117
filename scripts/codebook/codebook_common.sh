# shellcheck shell=bash
# Shared by the scripts of this folder; sourced, not run:
#   source .../codebook_common.sh && evaluate MODEL CHECKPOINT THETA TASK "$@"
#
# what          codebook.safetensors of the checkpoint; "random" for K tokens by chance; "all" for every token
# [keep]        theta=0.45 (a threshold: as many tokens as there are below it), or K=64, K=0.2 (a number, a share)
# [checkpoint]  folder or hub name
# further arguments go to lmms-eval, such as --limit 8 --output_path logs
#
# MOB_PYTHON     the Python to use (.venv of this repository if it is there, else python)
# MOB_MODEL_ARGS more of lmms-eval's --model_args, such as dtype=bfloat16,resume=runs/pope
set -euo pipefail
ARGS= # more --model_args of a script

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
python=${MOB_PYTHON:-$([ -x "$here/.venv/bin/python" ] && echo "$here/.venv/bin/python" || echo python)}

evaluate() { # evaluate MODEL CHECKPOINT THETA TASK [what] [keep] [checkpoint] [flags...]
  local model=$1 checkpoint=$2 theta=$3 task=$4 what=${5:-} keep=${6:-theta=$3} how
  checkpoint=${7:-$checkpoint}
  case $what in
    "" | -*) sed -n '2,4s/^# //p' "$0" >&2 && exit 2 ;;
    all) how=mob=False keep= ;;
    random) how=method=random,early=True ;;
    *) how=method=codebook,path=$what ;;
  esac
  case $what,$keep in
    all,* | random,K=* | *,theta=*) ;;
    *,K=*) how+=,policy=count ;;
    *) echo "error: keep=$keep: write theta=$theta, or K=64, K=0.2" >&2 && exit 2 ;;
  esac
  if [ "$what" = random ] && [ "${keep%%=*}" != K ]; then
    echo "error: random needs a number or share of tokens to keep, such as K=64" >&2 && exit 2
  fi
  exec "$python" -m lmms_eval --model "$model" --tasks "$task" --batch_size 1 \
    --model_args "pretrained=$checkpoint,$how${keep:+,$keep}${ARGS:+,$ARGS}${MOB_MODEL_ARGS:+,$MOB_MODEL_ARGS}" "${@:8}"
}
