"""Scores of a checkpoint beside those that ship: scripts/scenes/compare.py scores.json [shipped.json].

Both are what ``llava.scenes.evaluate --json`` writes: percent right, mean of nine kinds, with 95 % intervals.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

SHIPPED = Path(__file__).parents[2] / "benchmarks" / "results" / "scenes.json"


def rows(file: str | Path) -> tuple[str, dict[tuple[str, int], str]]:
    """The split that was asked about, and macro accuracy by method and K."""
    found = json.loads(Path(file).read_text())
    macros = {(r["method"], r["K"]): f"{r['macro']:5.1f} [{r['low']:.1f}, {r['high']:.1f}]" for r in found["rows"]}
    return found["setup"].get("split", "easy"), macros


def main(argv: list[str]) -> int:
    if not argv or len(argv) > 2:
        print(__doc__, file=sys.stderr)
        return 2
    (split, ours), (other, shipped) = rows(argv[0]), rows(argv[1] if len(argv) > 1 else SHIPPED)
    if split != other:  # other questions: nothing to compare with
        shipped = {}
    print(f"{'method':10} {'K':>4}   {'here':21} {'shipped':21}")
    for (method, K), value in ours.items():
        print(f"{method:10} {K:>4}   {value:21} {shipped.get((method, K), '-'):21}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
