#!/usr/bin/env bash
# Paper table 6: the covering fold k, LLaVA-1.5-7B.
# Usage: table6.sh [--smoke | --dry-run | --show] [options of tables.py]      (see tables.py --help, docs/reproducing.md)
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
python=${MOB_PYTHON:-$([ -x "$here/.venv/bin/python" ] && echo "$here/.venv/bin/python" || echo python)}
exec "$python" "$here/scripts/paper/tables.py" table6 "$@"
