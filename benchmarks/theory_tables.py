"""Tables and the plot of what ``theory.py`` found, for ``make_tables.py``."""

from __future__ import annotations

import json
from pathlib import Path

from speed_tables import IMAGES, markdown

RESULTS = Path(__file__).parent / "results"
SPLITS = tuple(name for name in ("easy", "crowded") if (RESULTS / f"theory-{name}.json").exists())
COLOURS = {"weak": "#1f6fb2", "strong": "#c2571a"}


def result(split: str) -> list[dict]:
    return json.loads((RESULTS / f"theory-{split}.json").read_text())["rows"]


def bound(split: str) -> str:
    """The least constant that makes Lemma 2 true, and rank correlations of its terms with the measured change."""
    rows = result(split)
    names = list(rows[0]["spearman"])
    lines = [["K", "eta, mean", "least C", *(f"change and {name}" for name in names)]]
    for row in rows:
        known = [row["spearman"][name] for name in names]
        cells = ["–" if value is None else f"{value:+.2f}" for value in known]
        lines.append([str(row["K"]), f"{row['eta']:.3f}", f"{row['constant']:.1f}", *cells])
    return markdown(lines)


def sweep(split: str) -> str:
    """Right answers and change of the logits along K_p, for both kinds of questions."""
    lines = [
        ["K", "K_p", "weak, right", "strong, right", "weak, change", "strong, change", "weak, eps_p", "weak, eps_v"]
    ]
    for row in result(split):
        parts = {(part["K_p"], part["questions"]): part for part in row["sweep"]}
        for K_p in dict.fromkeys(K_p for K_p, _ in parts):
            weak, strong = parts[K_p, "weak"], parts[K_p, "strong"]
            right = [f"{part['right']:.1f}" for part in (weak, strong)]
            moved = [f"{part['moved']:.2f}" for part in (weak, strong)]
            radii = ["–" if weak[name] is None else f"{weak[name]:.2f}" for name in ("eps_p", "eps_v")]
            lines.append([str(row["K"]), str(K_p), *right, *moved, *radii])
    return markdown(lines)


TABLES = {}
for _split in SPLITS:
    TABLES[f"theory-{_split}-bound"] = lambda split=_split: bound(split)
    TABLES[f"theory-{_split}-sweep"] = lambda split=_split: sweep(split)


def plots() -> None:
    """images/theory-SPLIT.png: change of the logits against max(eps_p, eps_v), and accuracy along K_p."""
    from matplotlib import pyplot

    for split in SPLITS:
        rows = result(split)
        figure, axes = pyplot.subplots(1, 2, figsize=(10.8, 3.8), layout="constrained")
        _scatter(axes[0], rows[len(rows) // 2])
        _sweeps(axes[1], rows)
        for place in axes:
            place.spines[["top", "right"]].set_visible(False)
        axes[0].legend(frameon=False, fontsize=8)
        axes[1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
        figure.suptitle(f"{split} scenes", fontsize=10)
        figure.savefig(IMAGES / f"theory-{split}.png", dpi=120, metadata={"Software": None})
        pyplot.close(figure)


def _scatter(axes, row: dict) -> None:
    for kind, colour in COLOURS.items():
        points = [(x, y) for x, y, name in row["points"] if name == kind]
        axes.scatter(*zip(*points, strict=True), s=8, alpha=0.6, color=colour, label=f"{kind} questions")
    axes.set(xlabel=f"max(eps_p, eps_v), K = {row['K']}", ylabel="change of the answer's logits")


def _sweeps(axes, rows: list[dict]) -> None:
    for row, style in zip(rows, ("-", "--", ":"), strict=False):
        for kind, colour in COLOURS.items():
            points = [(part["K_p"] / row["K"], part["right"]) for part in row["sweep"] if part["questions"] == kind]
            axes.plot(*zip(*points, strict=True), style, color=colour, marker=".", label=f"{kind}, K = {row['K']}")
    axes.set(xlabel="K_p / K", ylabel="percent right")
