#!/usr/bin/env bash
# Set up .venv if needed, then lint and test. Arguments go to pytest: scripts/test.sh -k covering, scripts/test.sh -m slow
# First argument --oldest: the same tests on the oldest transformers that is supported, in an environment of their own.
# MOB_JOBS=4: processes that share the tests (default: one for each core).
set -euo pipefail
if [ "${1:-}" = --oldest ]; then
  shift
  export MOB_VENV=.venv-oldest MOB_PINS=scripts/constraints-oldest.txt
fi
source "$(dirname "$0")/setup.sh"
source scripts/install_eval.sh
mob_eval

export OMP_WAIT_POLICY=passive
"$MOB_VENV"/bin/python -m ruff check .
"$MOB_VENV"/bin/python -m ruff format --check -q .
"$MOB_VENV"/bin/python -m pytest -n "${MOB_JOBS:-$(nproc 2>/dev/null || echo 2)}" --dist loadfile --no-loadscope-reorder --durations 25 "$@"
