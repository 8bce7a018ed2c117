#!/usr/bin/env bash
# After paper figures 4 to 6: ablations over K, K_p, k and layer, LLaVA-1.5-7B.
# Usage: figure4_6.sh [--smoke | --dry-run | --show] [options of tables.py]      (see tables.py --help, docs/reproducing.md)
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
python=${MOB_PYTHON:-$([ -x "$here/.venv/bin/python" ] && echo "$here/.venv/bin/python" || echo python)}
exec "$python" "$here/scripts/paper/tables.py" figure4_6 "$@"
