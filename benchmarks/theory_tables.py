"""Tables and the plots of what ``theory.py`` found, for ``make_tables.py``."""

from __future__ import annotations

import json
from operator import itemgetter as _of
from pathlib import Path

from speed_tables import IMAGES, markdown

RESULTS = Path(__file__).parent / "results"
SPLITS = tuple(name for name in ("easy", "crowded") if (RESULTS / f"theory-{name}.json").exists())
COLOURS = {"weak": "#1f6fb2", "strong": "#c2571a"}


# The fits of ``theory.py``: what was fitted, against which number of centres.
FITS = {"eps_v alone": ("eps_v", "K, with K_p = 0"), "eps_v": ("eps_v", "K - K_p"), "eps_p": ("eps_p", "K_p")}


def result(split: str) -> dict:
    return json.loads((RESULTS / f"theory-{split}.json").read_text())


def bound(split: str) -> str:
    """The least constant that makes Lemma 2 true, and rank correlations of its terms with the measured change."""
    rows = result(split)["rows"]
    names = list(rows[0]["spearman"])
    lines = [["K", "questions", "eta, mean", "least C", *(f"change and {name}" for name in names)]]
    for row in rows:
        for kind, part in {"all": row, **row["kinds"]}.items():
            cells = ["–" if part["spearman"][name] is None else f"{part['spearman'][name]:+.2f}" for name in names]
            lines.append([str(row["K"]), kind, f"{part['eta']:.3f}", f"{part['constant']:.1f}", *cells])
    return markdown(lines)


def fits(split: str) -> str:
    """How the radii fall with the number of centres, and the largest constants that make Theorem 1 true."""
    terms = result(split)["terms"]
    lines = [["questions", "radius", "against", "slope", "d_eff", "R²", "constant, fitted", "constant, least"]]
    for kind, term in terms.items():
        for name, fit in term["fits"].items():
            size = f"{1 / fit['slope']:.1f}" if fit["slope"] > 0 else "–"
            numbers = [f"{-fit['slope']:.3f}", size, *(f"{fit[key]:.2f}" for key in ("r2", "constant", "least"))]
            lines.append([kind, *FITS[name], *numbers])
    notes = []
    for kind, term in terms.items():
        largest = f"{kind} D1 = {term['D1']:.1f}, D2 = {term['D2']:.2f} (z = {term['D2'] ** -0.5:.2f})"
        notes.append(f"{largest}, rank {term['spearman']:+.2f}")
    says = "The largest constants that make Theorem 1 true, and the rank correlation of eta and max(eps_p, eps_v)"
    return f"{markdown(lines)}\n{says}: {'; '.join(notes)}.\n"


def terms(split: str) -> str:
    """Theorem 1's two terms beside the radii, and Theorem 2's K_p beside that of the sweep."""
    found = result(split)
    lines = [["K", "questions", "max(eps_p, eps_v)²", "D1 K^(-2/d_eff)", "D2 eta²", "share", "of a constant"]]
    lines[0] += ["K_p: terms equal", "K_p: least max(eps_p, eps_v)", "K_p: least change", "K_p: most right"]
    for number, row in enumerate(found["rows"]):
        for kind, term in found["terms"].items():
            part = term["rows"][number]
            cells = [f"{part[name]:.2f}" for name in ("radius^2", "D1 term", "D2 term", "share", "flat")]
            steps = [step for step in row["sweep"] if step["questions"] == kind]
            covered = [step for step in steps if step["radius"] is not None]
            best = [min(covered, key=_of("radius")), min(steps, key=_of("moved")), max(steps, key=_of("right"))]
            equal = "–" if part["equal"] is None else str(part["equal"])
            lines.append([str(row["K"]), kind, *cells, equal, *(str(step["K_p"]) for step in best)])
    return markdown(lines)


def sweep(split: str) -> str:
    """Right answers and change of the logits along K_p, for both kinds of questions."""
    lines = [
        ["K", "K_p", "weak, right", "strong, right", "weak, change", "strong, change", "weak, eps_p", "weak, eps_v"]
    ]
    for row in result(split)["rows"]:
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
    TABLES[f"theory-{_split}-fits"] = lambda split=_split: fits(split)
    TABLES[f"theory-{_split}-terms"] = lambda split=_split: terms(split)


def plots() -> None:
    """images/theory-SPLIT.png: change of the logits against max(eps_p, eps_v), and accuracy along K_p."""
    from matplotlib import pyplot

    for split in SPLITS:
        rows = result(split)["rows"]
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
