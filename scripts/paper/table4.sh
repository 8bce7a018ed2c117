#!/usr/bin/env bash
# Paper table 4: Video-LLaVA-7B on four sets of video questions, 136 tokens.
# Usage: table4.sh [--smoke | --dry-run | --show] [options of tables.py]      (see tables.py --help, docs/reproducing.md)
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
python=${MOB_PYTHON:-$([ -x "$here/.venv/bin/python" ] && echo "$here/.venv/bin/python" || echo python)}
exec "$python" "$here/scripts/paper/tables.py" table4 "$@"
