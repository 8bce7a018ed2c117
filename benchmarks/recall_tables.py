"""What checkpoints were trained to couple, for ``make_tables.py``: what ``recall.py`` found, and accuracy beside it."""

from __future__ import annotations

import json
from pathlib import Path

from speed_tables import interval, markdown

RESULTS = Path(__file__).parent / "results"
LAYER = 2  # where the comparison prunes; of the other rules only this one is shown
RULES = ("mob", "visual", "prompt", "random")


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
        cells = [interval(rows[key], "recall", ".0f") for key in wanted]
        lines.append([f"`{one['setup']['model']}`", one["setup"]["split"], *cells])
    setup = found[0]["setup"]
    note = (
        f"Percent of the patches that a question is about among the K = {setup['K']} of 196 that stay, mean over the "
        f"weak questions that are about any, {setup['n']} of each kind asked, with 95 % intervals."
    )
    return f"{markdown(lines)}\n{note}\n"


# Evaluations of the embedded checkpoint, of one that an older loop trained with the same losses, and of one without.
COUPLED = {
    "scenes": "`checkpoint`",
    "earlier/scenes": "`checkpoint-earlier`",
    "scenes-no-grounding": "`checkpoint-no-grounding`",
}


def accuracy() -> str:
    """Macro accuracy of rules on checkpoints with and without the grounding loss, and what the prompt's side gives."""
    lines = [["checkpoint", "K", *(f"`{rule}`" for rule in RULES), "`prompt` minus `visual`: weak", "strong"]]
    full = []
    for name, model in COUPLED.items():
        found = json.loads((RESULTS / f"{name}.json").read_text())
        rows = {(row["method"], row["K"]): row for row in found["rows"]}
        (vanilla,) = [row for row in found["rows"] if row["method"] == "vanilla"]
        full.append(f"{model} {interval(vanilla, 'macro')}")
        apart = {(entry["K"], entry["coupling"]): entry for entry in found["prompt_minus_visual"]}
        for K in sorted({K for K, _ in apart}, reverse=True):
            cells = [interval(rows[rule, K], "macro") for rule in RULES]
            cells += [interval(apart[K, group], "points", "+.1f") for group in ("weak", "strong")]
            lines.append([model, str(K), *cells])
    n = found["setup"]["n"]
    note = (
        f"Percent right, mean of nine kinds of questions, {n} held-out questions of each, with 95 % intervals; in the "
        "last two columns points on weak and on strong questions. With all tokens: "
        f"{', '.join(full)}."
    )
    return f"{markdown(lines)}\n{note}\n"


TABLES = {"recall": recall, "grounding": accuracy}
