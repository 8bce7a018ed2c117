#!/usr/bin/env bash
# Set up .venv if needed, then lint and test. Arguments go to pytest: scripts/test.sh -k covering, scripts/test.sh -m slow
set -euo pipefail
source "$(dirname "$0")/setup.sh"

export OMP_WAIT_POLICY=passive
.venv/bin/python -m ruff check .
.venv/bin/python -m ruff format --check -q .
.venv/bin/python -m pytest "$@"
