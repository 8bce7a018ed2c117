#!/usr/bin/env bash
# Paper table 3: Qwen2-VL-7B on six benchmarks, a third, two ninths and a ninth of the tokens.
# Usage: table3.sh [--smoke | --dry-run | --show] [options of tables.py]      (see tables.py --help, docs/reproducing.md)
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
python=${MOB_PYTHON:-$([ -x "$here/.venv/bin/python" ] && echo "$here/.venv/bin/python" || echo python)}
exec "$python" "$here/scripts/paper/tables.py" table3 "$@"
