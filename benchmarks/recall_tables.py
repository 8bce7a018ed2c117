"""The table of what ``recall.py`` found, for ``make_tables.py``: one row a checkpoint and split."""

from __future__ import annotations

import json
from pathlib import Path

from speed_tables import markdown

RESULTS = Path(__file__).parent / "results"
LAYER = 2  # where the comparison prunes; of the other rules only this one is shown


def recall() -> str:
    """Percent of the patches a weak question is about that stay, by layer for ``prompt``."""
    found = [json.loads(file.read_text()) for file in sorted(RESULTS.glob("recall-*.json"))]
    others = [rule for rule in dict.fromkeys(row["rule"] for row in found[0]["rows"]) if rule != "prompt"]
    layers = list(dict.fromkeys(row["layer"] for row in found[0]["rows"]))
    head = ["checkpoint", "scenes", *(f"`prompt`, layer {layer}" for layer in layers)]
    lines = [[*head, *(f"`{rule}`, layer {LAYER}" for rule in others)]]
    for one in found:
        rows = {(row["rule"], row["layer"]): row for row in one["rows"]}
        wanted = [("prompt", layer) for layer in layers] + [(rule, LAYER) for rule in others]
        cells = [f"{rows[key]['recall']:.0f} [{rows[key]['low']:.0f}, {rows[key]['high']:.0f}]" for key in wanted]
        lines.append([f"`{one['setup']['model']}`", one["setup"]["split"], *cells])
    setup = found[0]["setup"]
    note = (
        f"Percent of the patches that a question is about among the K = {setup['K']} of 196 that stay, mean over the "
        f"weak questions that are about any, {setup['n']} of each kind asked, with 95 % intervals."
    )
    return f"{markdown(lines)}\n{note}\n"


TABLES = {"recall": recall}
