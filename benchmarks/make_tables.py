"""Write the tables of the READMEs, the model card and the docs, and the plots: ``python benchmarks/make_tables.py``.

They come from benchmarks/results. Everything between ``<!-- table: NAME -->`` and ``<!-- end -->`` is replaced.
``--check`` only compares tables.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent)]

import adaptive_tables  # noqa: E402
import compare_tables  # noqa: E402
import recall_tables  # noqa: E402
import speed_tables  # noqa: E402
import theory_tables  # noqa: E402
import training_tables  # noqa: E402
from speed_tables import interval, markdown  # noqa: E402

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
_WITH_TABLES = (
    "README.md",
    "LLaVA/llava/scenes/checkpoint/README.md",
    "LLaVA/llava/scenes/checkpoint-crowded/README.md",
    "LLaVA/llava/scenes/checkpoint-no-grounding/README.md",
    "LLaVA/llava/scenes/checkpoint-earlier/README.md",
    "RedundancyCodebook/README.md",
    "docs/training.md",
    "docs/performance.md",
    "docs/theory.md",
    "docs/scenes.md",
    "docs/comparison.md",
    "docs/adaptive.md",
)
FILES = tuple(ROOT / name for name in _WITH_TABLES)
_BLOCK = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
TASKS = ("exist", "colour", "shape", "ocr", "pattern", "bgcolour", "modeshape", "modecolour", "count")


def scenes(name: str = "scenes") -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text())


def by_budget() -> str:
    """Macro accuracy: one row a rule, one column a budget."""
    result = scenes()
    cells = {(row["method"], row["K"]): f"{row['macro']:.1f}" for row in result["rows"]}
    budgets = sorted({row["K"] for row in result["rows"] if row["method"] == "mob"}, reverse=True)
    lines = [["rule", *(f"K = {K}" for K in budgets)]]
    for method in ("mob", "visual", "prompt", "random"):
        lines.append([f"`{method}`", *(cells[method, K] for K in budgets)])
    n = result["setup"]["n"]
    note = (
        f"Percent right, mean of nine kinds of questions, {n} held-out questions of each. All 196 tokens: "
        f"**{cells['vanilla', 196]}**; every visual token dropped at layer 2: {cells['drop-all', 0]}."
    )
    return f"{markdown(lines)}\n{note}\n"


def by_difference() -> str:
    """MoB minus the other rules, with paired 95 % intervals."""
    lines = [["K", "than", "points", "95 % interval"]]
    for entry in sorted(scenes()["mob_minus"], key=lambda e: (-e["K"], e["than"])):
        interval = f"{entry['low']:+.1f} to {entry['high']:+.1f}"
        lines.append([str(entry["K"]), f"`{entry['than']}`", f"{entry['points']:+.1f}", interval])
    return markdown(lines)


def by_task(name: str = "scenes") -> str:
    """Every row of an evaluation, percent right in each kind."""
    lines = [["rule", "K", "macro [95 %]", *TASKS]]
    for row in scenes(name)["rows"]:
        tasks = [f"{100 * row['tasks'][t]['right'] / row['tasks'][t]['asked']:.1f}" for t in TASKS]
        lines.append([f"`{row['method']}`", str(row["K"]), interval(row, "macro"), *tasks])
    return markdown(lines)


# Rules of the codebook's table, and where they choose.
PLACES = {
    "random": "layer 2",
    "mob": "layer 2",
    "early-random": "before",
    "codebook": "before",
    "random+mob": "before, layer 2",
    "codebook+mob": "before, layer 2",
}


def codebook() -> dict:
    return json.loads((RESULTS / "codebook.json").read_text())


def codebook_by_budget() -> str:
    """Macro accuracy with its interval: one row a rule, one column a budget."""
    result = codebook()
    rows = {(row["method"], row["K"]): row for row in result["rows"]}
    budgets = sorted({K for method, K in rows if method == "mob"}, reverse=True)
    lines = [["rule", "where", *(f"K = {K}" for K in budgets)]]
    for method, place in PLACES.items():
        lines.append([f"`{method}`", place, *(interval(rows[method, K], "macro") for K in budgets)])
    note = (
        "Percent right with 95 % intervals, mean of nine kinds of questions, "
        f"{result['setup']['n']} held-out questions of each. All 196 tokens: "
        f"**{interval(rows['vanilla', 196], 'macro')}**."
    )
    return f"{markdown(lines)}\n{note}\n"


def codebook_by_difference() -> str:
    """The codebook minus its controls, with paired 95 % intervals."""
    lines = [["K", "rule", "than", "points", "95 % interval"]]
    result = codebook()
    pairs = (
        ("codebook", "early-random"),
        ("codebook", "mob"),
        ("codebook+mob", "random+mob"),
        ("codebook+mob", "codebook"),
        ("codebook+mob", "mob"),
    )
    for K in sorted({entry["K"] for entry in result["codebook_minus"]}, reverse=True):
        for rule, than in pairs:
            (entry,) = [e for e in result[f"{rule}_minus"] if (e["K"], e["than"]) == (K, than)]
            interval = f"{entry['low']:+.1f} to {entry['high']:+.1f}"
            lines.append([str(K), f"`{rule}`", f"`{than}`", f"{entry['points']:+.1f}", interval])
    return markdown(lines)


def codebook_by_task() -> str:
    """Percent right in each kind of question."""
    lines = [["rule", "K", *TASKS]]
    for row in codebook()["rows"]:
        tasks = [f"{100 * row['tasks'][t]['right'] / row['tasks'][t]['asked']:.0f}" for t in TASKS]
        lines.append([f"`{row['method']}`", str(row["K"]), *tasks])
    return markdown(lines)


TABLES = {
    "scenes-budget": by_budget,
    "scenes-difference": by_difference,
    "scenes-task": by_task,
    "scenes-crowded-on-easy": lambda: by_task("scenes-crowded-on-easy"),
    "scenes-no-grounding": lambda: by_task("scenes-no-grounding"),
    "scenes-earlier": lambda: by_task("earlier/scenes"),
    "codebook-budget": codebook_by_budget,
    "codebook-difference": codebook_by_difference,
    "codebook-task": codebook_by_task,
    **training_tables.TABLES,
    **speed_tables.TABLES,
    **compare_tables.TABLES,
    **theory_tables.TABLES,
    **recall_tables.TABLES,
    **adaptive_tables.TABLES,
}


def render(text: str) -> str:
    """The text with every block made anew."""
    return _BLOCK.sub(lambda match: match[1] + TABLES[match[2]]() + match[3], text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit 1 where a table is not what the results say")
    args = parser.parse_args()
    stale = 0
    for file in FILES:
        old = file.read_text()
        new = render(old)
        stale += old != new
        if not args.check:
            file.write_text(new)
    if not args.check:
        speed_tables.plots()
        compare_tables.plots()
        theory_tables.plots()
    return 1 if args.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
