#!/usr/bin/env bash
# The embedded checkpoint from nothing, on a CPU, stage by stage; after each stage, what the model can do by then.
# About an hour and a half of two cores. Killed at any moment, the same command continues. Nothing is downloaded.
# SPLIT: easy, or crowded, which takes about four hours of CPU time and is evaluated on both. OUT: folder (runs/scenes).
# N: questions of each kind (500, as for the shipped scores). PYTHON: .venv/bin/python.
# Arguments go to llava.scenes.train: OUT=runs/try scripts/scenes/train.sh --align-steps 20 --steps 20 --evidence-steps 20
set -euo pipefail
cd "$(dirname "$0")/../.."
export OMP_WAIT_POLICY=passive
split="${SPLIT:-easy}"
out="${OUT:-runs/scenes}"
python="${PYTHON:-.venv/bin/python}"
[ -x "$(command -v "$python")" ] || python=python3

for stage in align answer evidence; do
  "$python" -m llava.scenes.train --split "$split" --out "$out" --until "$stage" "$@"
  case $stage in
    align) methods=vanilla ;; # no answers yet: the language model is as new
    answer) methods="vanilla mob random" ;;
    evidence) methods="vanilla mob visual prompt random drop-all" ;;
  esac
  for asked in easy crowded; do
    [ "$asked" = easy ] || [ "$split" = crowded ] || continue
    scores="$out/$stage/scores.json"
    [ "$asked" = easy ] || scores="$out/$stage/scores-$asked.json"
    if [ ! -s "$scores" ] || [ "$out/$stage/checkpoint/model.safetensors" -nt "$scores" ]; then
      # shellcheck disable=SC2086
      "$python" -m llava.scenes.evaluate --split "$asked" --model-path "$out/$stage/checkpoint" --methods $methods \
        --n "${N:-500}" --json "$scores"
    fi
    echo "after stage $stage, $asked scenes ($scores):"
    "$python" scripts/scenes/compare.py "$scores"
  done
done
