#!/usr/bin/env bash
# From a fresh clone to an answer with MoB on: set up .venv, ask the embedded checkpoint about a picture with all visual
# tokens and with a third of them, and paint which ones were kept.   MOB_TORCH=cuda: with a CUDA build of torch.
set -euo pipefail
source "$(dirname "$0")/setup.sh"

picture=${1:-images/scene.png}
question=${2:-what number is on the sign?}
mkdir -p outputs
echo "picture:  $picture"
echo "question: $question"
.venv/bin/python -m llava.eval.run_llava --image-file "$picture" --query "$question" --temperature 0 \
  --mob-compare --overlay outputs/overlay.png --save-record outputs/record.json
