#!/usr/bin/env bash
# From a fresh clone to an answer with MoB on: set up .venv, ask the embedded checkpoint about a picture with all visual
# tokens and with a third of them, and paint which ones were kept.   MOB_TORCH=cuda: with a CUDA build of torch.
set -euo pipefail
picture=$(realpath "${1:-$(dirname "$0")/../images/scene.png}")
question=${2:-what number is on the sign?}
source "$(dirname "$0")/setup.sh"

mkdir -p outputs
echo "picture:  ${picture#"$PWD"/}"
echo "question: $question"
"$MOB_VENV"/bin/python -m llava.eval.run_llava --image-file "$picture" --query "$question" --temperature 0 \
  --mob-compare --overlay outputs/overlay.png --save-record outputs/record.json
