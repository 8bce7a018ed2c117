# shellcheck shell=bash
# Makes .venv with everything that the quickstart and the tests need; sourced, not run. A second time it does nothing.
#
#   MOB_VENV=...      another folder than .venv
#   MOB_PINS=...      another file than scripts/constraints.txt, which says what exactly is installed
#   MOB_TORCH=cuda    take the CUDA build of torch instead of the CPU build
#   MOB_PYTHON=...    the Python to use (default: python3), at least 3.10

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit

MOB_VENV=${MOB_VENV:-.venv}
MOB_PINS=${MOB_PINS:-scripts/constraints.txt}

mob_setup() {
  local python=${MOB_PYTHON:-python3} wanted
  # The marker holds what was installed from: a changed dependency sets up again.
  wanted="${MOB_TORCH:-cpu} $(cat {,LLaVA/,LLaVA-Next/,Qwen2-VL/,RedundancyCodebook/}pyproject.toml ./*/setup.py "$MOB_PINS" scripts/setup.sh | cksum)"
  [ -f "$MOB_VENV"/.ready ] && [ "$(cat "$MOB_VENV"/.ready)" = "$wanted" ] && return 0

  if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
    echo "error: $python is missing or older than Python 3.10; set MOB_PYTHON to a newer one" >&2
    return 1
  fi
  echo "setting up $MOB_VENV (once; a few minutes) ..." >&2
  if ! "$MOB_VENV"/bin/python -m pip --version >/dev/null 2>&1; then
    "$python" -m venv "$MOB_VENV" || { echo "error: cannot make $MOB_VENV; on Debian: apt-get install python3-venv" >&2; return 1; }
  fi
  mob_torch || { echo "error: could not install torch" >&2; return 1; }
  # From the last to the first: each brings copies of what it needs along, which the editable ones replace.
  for part in ./RedundancyCodebook ./LLaVA-Next './LLaVA[dev]' ./Qwen2-VL '.[dev]'; do
    "$MOB_VENV"/bin/python -m pip install -q --disable-pip-version-check -c "$MOB_PINS" -e "$part" || return 1
  done
  echo "$wanted" >"$MOB_VENV"/.ready
}

# torch alone, first, so that nothing else drags in another build.
mob_torch() {
  local pip="$MOB_VENV/bin/python -m pip install -q --disable-pip-version-check" torch
  torch=$(grep '^torch==' "$MOB_PINS")
  "$MOB_VENV"/bin/python - "$torch" "${MOB_TORCH:-cpu}" 2>/dev/null <<'PYTHON' && return 0
import sys, torch
wanted, build = sys.argv[1].removeprefix("torch=="), sys.argv[2]
sys.exit(torch.__version__.split("+")[0] != wanted or (build == "cuda") != (torch.version.cuda is not None))
PYTHON
  if [ "${MOB_TORCH:-cpu}" = cuda ]; then
    $pip "$torch"
    return
  fi
  # From your own pip configuration, from PyTorch's index of CPU builds, or whatever this platform has.
  $pip "$torch+cpu" 2>/dev/null ||
    $pip "$torch+cpu" --extra-index-url https://download.pytorch.org/whl/cpu 2>/dev/null ||
    $pip "$torch"
}

mob_setup || exit 1
