#!/usr/bin/env bash
# Every rule, at every budget, on both splits of the scenes: bash scripts/compare.sh
# An hour and a half of one core for a split. Killed at any moment, the same command continues. Then come the tables and
# the plot, where OUT is the default.
# SPLITS ("easy crowded"), MODEL_EASY and MODEL_CROWDED (folders of checkpoints), OUT (benchmarks/results), N (500),
# PYTHON (.venv/bin/python). Arguments go to benchmarks/compare.py: scripts/compare.sh --minutes 60
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_WAIT_POLICY=passive
out="${OUT:-benchmarks/results}"
python="${PYTHON:-.venv/bin/python}"
[ -x "$(command -v "$python")" ] || python=python3
embedded=LLaVA/llava/scenes/checkpoint

for split in ${SPLITS:-easy crowded}; do
  case $split in
    easy) model="${MODEL_EASY:-$embedded}" ;;
    *) model="${MODEL_CROWDED:-$embedded-crowded}" ;;
  esac
  [ -d "$model" ] || { echo "no checkpoint in $model: train one (docs/scenes.md), or set MODEL_CROWDED" >&2; exit 2; }
  codebook=()
  if [ "$model" = "$embedded" ]; then codebook=(--codebook codebooks/scenes/codebook.safetensors); fi
  "$python" benchmarks/compare.py --split "$split" --model-path "$model" "${codebook[@]}" --n "${N:-500}" \
    --json "$out/compare-$split.json" "$@"
done
if [ "$out" = benchmarks/results ]; then "$python" benchmarks/make_tables.py; fi
