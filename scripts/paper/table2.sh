#!/usr/bin/env bash
# Paper tables 2 and 5, rows of this repository: LLaVA-1.5-7B and LLaVA-Next-7B on ten benchmarks.
# Usage: table2.sh [--smoke | --dry-run | --show] [options of tables.py]      (see tables.py --help, docs/reproducing.md)
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
python=${MOB_PYTHON:-$([ -x "$here/.venv/bin/python" ] && echo "$here/.venv/bin/python" || echo python)}
exec "$python" "$here/scripts/paper/tables.py" table2 "$@"
