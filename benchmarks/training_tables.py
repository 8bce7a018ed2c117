"""What training gave, for ``make_tables.py``: pruned trainings, and ``scripts/scenes/train.sh`` from nothing."""

from __future__ import annotations

import json
from pathlib import Path

from speed_tables import interval, markdown

RESULTS = Path(__file__).parent / "results"
STAGES = ("align", "answer", "evidence")


def by_training() -> str:
    """Training with and without pruning: what a step takes, and how the models do at each budget."""
    result = json.loads((RESULTS / "pruned_training.json").read_text())
    setup, step = result["setup"], result["cpu_seconds_a_step"]
    budgets = setup["budgets"]
    rows = {(row["trained"], row["K"]): row for row in result["rows"]}
    names = {
        "full": f"all {budgets[0]} tokens",
        "pruned": f"K = {budgets[-1]}",
        "random": f"K drawn from {', '.join(map(str, budgets))}",
    }
    taken = {"full": str(budgets[0]), "pruned": str(budgets[-1]), "random": "random"}
    controls = {(row["trained"], row["method"]): row for row in result["controls"]}
    last = [f"`random`, K = {budgets[-1]}", "no token"]
    lines = [["trained with", "CPU s a step", *(f"right at K = {K}" for K in budgets), *last]]
    for variant, name in names.items():
        seconds = step[taken[variant]]
        cells = [interval(rows[variant, K], "points") for K in budgets]
        cells += [interval(controls[variant, method], "points") for method in ("random", "drop-all")]
        lines.append([name, interval(seconds, "median", ".2f"), *cells])
    for variant in ("pruned", "random"):
        cells = [interval(rows[variant, K]["more_than_full"], "points", "+.1f") for K in budgets]
        lines.append([f"{names[variant]}, minus all tokens", "", *cells, "", ""])
    seeds = len(setup["seeds"])
    note = (
        f"Percent right, mean of nine kinds of questions, {setup['n']} held-out questions of each, {seeds} "
        f"{'seed' if seeds == 1 else 'seeds'}; 95 % intervals by resampling scenes, paired in the last two rows, which "
        f"say nothing about other seeds. {setup['steps']} steps of {setup['dialogues']} dialogues, one thread. "
        "A step with a drawn K was not timed by itself: it is the mean of the three budgets."
    )
    return f"{markdown(lines)}\n{note}\n"


def by_stage() -> str:
    """Macro accuracy after each stage of the run that made the embedded checkpoint, beside what two other runs gave."""
    files = [RESULTS / "train" / f"{stage}.json" for stage in (*STAGES, "another")]
    files.append(RESULTS / "earlier" / "scenes.json")
    found = [json.loads(file.read_text()) for file in files]
    columns = [{(row["method"], row["K"]): interval(row, "macro") for row in one["rows"]} for one in found]
    lines = [["rule", "K", *(f"after `{stage}`" for stage in STAGES), "another run", "`checkpoint-earlier`"]]
    for method, K in columns[-1]:
        lines.append([f"`{method}`", str(K), *(column.get((method, K), "") for column in columns)])
    note = (
        f"Percent right, mean of nine kinds of questions, {found[-1]['setup']['n']} held-out questions of each, with "
        "95 % intervals by resampling scenes."
    )
    return f"{markdown(lines)}\n{note}\n"


TABLES = {"pruned-training": by_training, "training-stages": by_stage}
