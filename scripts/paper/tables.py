"""The paper's tables and figures, measured beside printed; see ``--help`` and docs/reproducing.md."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT)]

from paper.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
