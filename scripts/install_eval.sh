#!/usr/bin/env bash
# Adds lmms-eval and the models of lmms_eval/ to the environment: run it after scripts/setup.sh, or source it there and
# call mob_eval. A second time it does nothing.
#
#   scripts/install_eval.sh          without torchvision: for CPUs, where the wheels of torchvision do not fit torch
#   scripts/install_eval.sh --gpu    all of lmms-eval's requirements, torchvision too: with a CUDA build of torch
#
#   MOB_VENV=...      another folder than .venv
#   MOB_PINS=...      another file than scripts/constraints.txt

MOB_VENV=${MOB_VENV:-.venv}
MOB_PINS=${MOB_PINS:-scripts/constraints.txt}

# mob_eval [--gpu], in the root of the repository
mob_eval() {
  local pip="$MOB_VENV/bin/python -m pip install -q --disable-pip-version-check -c $MOB_PINS" lmms wanted problem
  lmms=$(grep -o '^lmms-eval==[0-9.]*' lmms_eval/requirements.txt)
  wanted="${1:-} $(cat lmms_eval/{pyproject.toml,setup.py,requirements.txt,requirements-cpu.txt} "$MOB_PINS" scripts/install_eval.sh | cksum)"
  [ -f "$MOB_VENV"/.ready-eval ] && [ "$(cat "$MOB_VENV"/.ready-eval)" = "$wanted" ] && return 0
  if ! "$MOB_VENV"/bin/python -c 'import importlib.util as u, sys
sys.exit(not all(map(u.find_spec, ("torch", "transformers", "mob", "llava", "llava_next", "Qwen2VL_MoB"))))' 2>/dev/null; then
    echo "error: $MOB_VENV lacks torch, transformers or a package of this repository: run scripts/quickstart.sh first" >&2
    return 1
  fi
  echo "adding $lmms to $MOB_VENV (once; a minute) ..." >&2
  if [ "${1:-}" = --gpu ]; then
    if ! "$MOB_VENV"/bin/python -c 'import sys, torch; sys.exit(not (torch.version.cuda or torch.version.hip))'; then
      echo "error: $MOB_VENV has a CPU build of torch: leave out --gpu, or set it up with MOB_TORCH=cuda" >&2
      return 1
    fi
    $pip "$lmms" || return 1
  else
    # torchvision, which lmms-eval asks for, comes in wheels for CUDA that break transformers beside a CPU build of
    # torch. What is really needed is in the list; it goes first, because pip complains about what is missing after.
    $pip -r lmms_eval/requirements-cpu.txt && $pip --no-deps "$lmms" || return 1
  fi
  $pip --no-deps -e ./lmms_eval || return 1
  if ! problem=$(mob_eval_works 2>&1); then
    echo "error: lmms-eval cannot be imported (${problem##*$'\n'}); if torchvision is of another build than torch, remove it: $MOB_VENV/bin/python -m pip uninstall torchvision timm" >&2
    return 1
  fi
  echo "$wanted" >"$MOB_VENV"/.ready-eval
}

# The two imports that a torchvision of another build breaks, and ours.
mob_eval_works() {
  "$MOB_VENV"/bin/python -c '
import importlib.metadata
import lmms_eval.api.model
from transformers import CLIPVisionModel, LlavaNextForConditionalGeneration
names = {point.name for point in importlib.metadata.entry_points(group="lmms_eval.models")}
assert "mob" in names, names'
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
  set -euo pipefail
  cd "$(dirname "$0")/.."
  case "${1:-}" in '' | --gpu) mob_eval "$@" ;; *) echo "usage: scripts/install_eval.sh [--gpu]" >&2 && exit 2 ;; esac
fi
