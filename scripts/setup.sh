# Makes .venv with everything that the quickstart and the tests need; sourced, not run. A second time it does nothing.
#
#   MOB_TORCH=cuda    take the CUDA build of torch instead of the CPU build
#   MOB_PYTHON=...    the Python to use (default: python3), at least 3.10

cd "$(dirname "${BASH_SOURCE[0]}")/.."

mob_setup() {
  local python=${MOB_PYTHON:-python3} wanted
  # The marker holds what was installed from: a changed dependency sets up again.
  wanted="${MOB_TORCH:-cpu} $(cat {,LLaVA/}pyproject.toml LLaVA/setup.py scripts/{constraints.txt,setup.sh} | cksum)"
  [ -f .venv/.ready ] && [ "$(cat .venv/.ready)" = "$wanted" ] && return 0

  if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
    echo "error: $python is missing or older than Python 3.10; set MOB_PYTHON to a newer one" >&2
    return 1
  fi
  echo "setting up .venv (once; a few minutes) ..." >&2
  if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    "$python" -m venv .venv || { echo "error: cannot make .venv; on Debian: apt-get install python3-venv" >&2; return 1; }
  fi
  mob_torch || { echo "error: could not install torch" >&2; return 1; }
  # mob last: llava brings a copy of it along, which the editable one replaces.
  for part in './LLaVA[dev]' '.[dev]'; do
    .venv/bin/python -m pip install -q --disable-pip-version-check -c scripts/constraints.txt -e "$part" || return 1
  done
  echo "$wanted" >.venv/.ready
}

# torch alone, first, so that nothing else drags in another build.
mob_torch() {
  local pip=".venv/bin/python -m pip install -q --disable-pip-version-check" torch
  torch=$(grep '^torch==' scripts/constraints.txt)
  .venv/bin/python - "$torch" "${MOB_TORCH:-cpu}" 2>/dev/null <<'PYTHON' && return 0
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
