"""The tables of what ``adaptive.py`` found, for ``make_tables.py``."""

from __future__ import annotations

import json
from pathlib import Path

from speed_tables import interval, markdown

RESULTS = Path(__file__).parent / "results"
SPLITS = tuple(name for name in ("easy", "crowded") if (RESULTS / f"adaptive-{name}.json").exists())


def adaptive() -> str:
    """One row a radius, or a budget of ``online``, with what it is compared with."""
    lines = [["scenes", "asked with", "tokens, mean", "right [95 %]", "minus", "points [95 %]"]]
    for split in SPLITS:
        found = json.loads((RESULTS / f"adaptive-{split}.json").read_text())
        for row in found["rows"]:
            if "minus" in row:
                radius = row.get("epsilon")
                what = f"K = {row['K']}, " + ("`online`" if radius is None else f"`epsilon={radius}`")
                other = "the default" if radius is None else f"K = {max(1, round(row['tokens']))} for all"
                right, minus = interval(row["macro"], "points"), interval(row["minus"], "points", "+.1f")
                lines.append([split, what, f"{row['tokens']:.1f}", right, other, minus])
    n = found["setup"]["n"]
    return f"{markdown(lines)}\nPercent right, mean of nine kinds of questions, {n} of each; differences are paired.\n"


TABLES = {"adaptive": adaptive}
