"""Tables and the plot of what ``compare.py`` found, for ``make_tables.py``."""

from __future__ import annotations

import json
from pathlib import Path

from speed_tables import IMAGES, markdown

RESULTS = Path(__file__).parent / "results"
SPLITS = tuple(name for name in ("easy", "crowded") if (RESULTS / f"compare-{name}.json").exists())
SURE = 0.05
BY = {"K": "equal K", "mean": "equal mean"}


def result(split: str) -> dict:
    return json.loads((RESULTS / f"compare-{split}.json").read_text())


def summary(split: str, by: str) -> str:
    """One row a rule, one column a budget of MoB: accuracy, and whether MoB's is another."""
    found = result(split)
    rows = {(row["method"], row["budget"]): row for row in found["rows"] if row["by"] == by}
    budgets = list(dict.fromkeys(row["budget"] for row in found["rows"]))
    lines = [["rule", *(f"K = {K}" if by == "K" else f"as MoB with {K}" for K in budgets)]]
    for method in dict.fromkeys(method for method, _ in rows if ":" not in method):
        lines.append([f"`{method}`", *(_mark(rows.get((method, K))) for K in budgets)])
    whole, none = (found[name]["macro"]["points"] for name in ("vanilla", "drop-all"))
    note = (
        f"Percent right, mean of nine kinds of questions, {found['setup']['n']} of each; ▲ better and ▼ worse than MoB "
        f"(paired, McNemar, p < {SURE}). All 196 tokens: **{whole:.1f}**; none from layer 2 on: {none:.1f}."
    )
    return f"{markdown(lines)}\n{note}\n"


def _mark(row: dict | None) -> str:
    if row is None:
        return "–"
    minus, value = row.get("minus_mob"), f"{row['macro']['points']:.1f}"
    if minus is None:
        return f"**{value}**"
    return value + ("" if minus["p"] >= SURE else " ▲" if minus["points"] > 0 else " ▼")


def full(split: str) -> str:
    """Every row: accuracy with intervals, by coupling, the difference from MoB, and what it costs."""
    head = "MoB's K, compared at, rule, K, tokens a layer, right [95 %], weak, strong, minus MoB [95 %], p"
    lines = [[*head.split(", "), "selection, CPU ms of 50", "pass, of unpruned"]]
    for row in result(split)["rows"]:
        minus, chosen = row.get("minus_mob"), row["pruner_ms"]
        lines.append(
            [
                str(row["budget"]),
                BY[row["by"]],
                f"`{row['method']}`",
                str(row["K"]),
                f"{row['mean_tokens']:.1f}",
                _interval(row["macro"], ".1f"),
                f"{row['weak']['points']:.1f}",
                f"{row['strong']['points']:.1f}",
                _interval(minus, "+.1f") if minus else "",
                f"{minus['p']:.1g}" if minus else "",
                "" if chosen is None else f"{chosen:.0f}",
                f"{row['share']:.2f}",
            ]
        )
    return markdown(lines)


def coupling(split: str) -> str:
    """``prompt`` minus ``visual`` on weak and strong questions, from their differences to MoB."""
    rows = {(row["method"], row["budget"]): row for row in result(split)["rows"] if row["by"] == "K"}
    lines = [["K", "questions", "`prompt`", "`visual`", "difference"]]
    for K in dict.fromkeys(budget for _, budget in rows):
        for group in ("weak", "strong"):
            one, other = (rows[name, K][group]["points"] for name in ("prompt", "visual"))
            lines.append([str(K), group, f"{one:.1f}", f"{other:.1f}", f"{one - other:+.1f}"])
    return markdown(lines)


def regimes(split: str) -> str:
    """MoB's fixed regimes and the one that adapts, at each budget."""
    rows = {(row["method"], row["budget"]): row for row in result(split)["rows"] if row["by"] == "K"}
    lines = [["K", "default", "strong", "weak", "auto", "auto minus strong [95 %]", "auto minus weak [95 %]"]]
    for K in dict.fromkeys(budget for _, budget in rows):
        cells = [_interval(rows[name, K]["macro"], ".1f") for name in ("mob", "mob:strong", "mob:weak", "mob:auto")]
        fixed = rows["mob:auto", K]["minus_fixed"]
        lines.append([str(K), *cells, *(_interval(fixed[name], "+.1f") for name in ("mob:strong", "mob:weak"))])
    return markdown(lines)


TABLES = {}
for _split in SPLITS:
    for _by in BY:
        TABLES[f"compare-{_split}-{_by}"] = lambda split=_split, by=_by: summary(split, by)
    TABLES[f"compare-{_split}-full"] = lambda split=_split: full(split)
    TABLES[f"compare-{_split}-regimes"] = lambda split=_split: regimes(split)
    TABLES[f"compare-{_split}-coupling"] = lambda split=_split: coupling(split)


def plots() -> None:
    """images/compare.png: accuracy against the mean number of visual tokens a layer, one line a rule."""
    from matplotlib import pyplot

    if not SPLITS:
        return
    figure, axes = pyplot.subplots(
        1, len(SPLITS), figsize=(6.4 * len(SPLITS), 4.6), layout="constrained", squeeze=False
    )
    for place, split in zip(axes[0], SPLITS, strict=True):
        _draw(place, split)
    figure.savefig(IMAGES / "compare.png", dpi=120, metadata={"Software": None})
    pyplot.close(figure)


def _draw(axes, split: str) -> None:
    from matplotlib import colormaps

    found = result(split)
    names = list(dict.fromkeys(row["method"] for row in found["rows"] if ":" not in row["method"]))
    colours = dict(zip(names, colormaps["tab20"].colors, strict=False))
    for name in names:
        points = sorted({(r["mean_tokens"], r["macro"]["points"]) for r in found["rows"] if r["method"] == name})
        thick = 2.6 if name == "mob" else 1.2
        axes.plot(
            *zip(*points, strict=True), marker="o", markersize=3, linewidth=thick, color=colours[name], label=name
        )
    axes.axhline(found["vanilla"]["macro"]["points"], color="black", linewidth=0.8, linestyle="--", label="all tokens")
    axes.set(title=f"{split} scenes", xlabel="visual tokens a layer, mean", ylabel="percent right")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=7, ncols=2)


def _interval(entry: dict, form: str) -> str:
    return f"{entry['points']:{form}} [{entry['low']:{form}}, {entry['high']:{form}}]"
