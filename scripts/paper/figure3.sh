#!/usr/bin/env bash
# After paper figure 3: latency against score, LLaVA-Next-7B.
# Usage: figure3.sh [--smoke | --dry-run | --show] [options of tables.py]      (see tables.py --help, docs/reproducing.md)
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
python=${MOB_PYTHON:-$([ -x "$here/.venv/bin/python" ] && echo "$here/.venv/bin/python" || echo python)}
exec "$python" "$here/scripts/paper/tables.py" figure3 "$@"
