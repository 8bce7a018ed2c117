#!/usr/bin/env bash
# After paper figure 9: the distribution of eta by benchmark, LLaVA-1.5-7B.
# Usage: figure9.sh [--smoke | --dry-run | --show] [options of tables.py]      (see tables.py --help, docs/reproducing.md)
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
python=${MOB_PYTHON:-$([ -x "$here/.venv/bin/python" ] && echo "$here/.venv/bin/python" || echo python)}
exec "$python" "$here/scripts/paper/tables.py" figure9 "$@"
