"""Tables and the plot of what ``compare.py`` found, for ``make_tables.py``."""

from __future__ import annotations

import json
from pathlib import Path

from speed_tables import IMAGES, interval, markdown

from llava.scenes.splits import SPLITS as SCENES
from mob.methods import METHODS, own_layers

RESULTS = Path(__file__).parent / "results"
SPLITS = tuple(name for name in ("easy", "crowded") if (RESULTS / f"compare-{name}.json").exists())
NINTH = 22
BY = {"K": "equal K", "mean": "equal mean"}
PLAIN = ("mob", "visual", "prompt", "random")
# Where a rule prunes: colours of the plot, dark for the first rule that does so.
BEFORE, ONCE, SEVERAL = "before the decoder", "at layer 2", "at several layers"
EARLIER = "from layer 1 on"
COLOURS = {
    EARLIER: "Reds_r",
    BEFORE: "Blues_r",
    ONCE: "Oranges_r",
    SEVERAL: "Greens_r",
    f"{BEFORE}, {ONCE}": "Purples_r",
}
MARKERS = "osD^vPX<>*"


def result(split: str, folder: str = "") -> dict:
    return json.loads((RESULTS / folder / f"compare-{split}.json").read_text())


def where(method: str) -> str:
    """Where a rule of the comparison prunes."""
    if "@" in method:
        return EARLIER
    if "+" in method:
        return f"{BEFORE}, {ONCE}"
    if method == "early-random" or getattr(METHODS.get(method), "early", None) is True:
        return BEFORE
    return SEVERAL if own_layers(method) else ONCE


def _ordered(found: dict) -> list[str]:
    """Rules by where they prune, MoB first, then the best first."""
    total = dict.fromkeys((row["method"] for row in found["rows"] if ":" not in row["method"]), 0.0)
    for row in found["rows"]:
        if row["method"] in total and row["by"] == ("mean" if "@" in row["method"] else "K"):
            total[row["method"]] += row["macro"]["points"]
    places = [ONCE, SEVERAL, EARLIER, f"{BEFORE}, {ONCE}", BEFORE]
    return sorted(total, key=lambda name: (name != "mob", places.index(where(name)), -total[name]))


def summary(split: str, by: str) -> str:
    """One row a rule, one column a budget of MoB: accuracy, and whether MoB's is another."""
    found = result(split)
    rows = {(row["method"], row["budget"]): row for row in found["rows"] if row["by"] == by}
    budgets = list(dict.fromkeys(row["budget"] for row in found["rows"]))
    lines = [["rule", "prunes", *(f"K = {K}" if by == "K" else f"as MoB with {K}" for K in budgets)]]
    asked = {method for method, _ in rows}
    for method in filter(asked.__contains__, _ordered(found)):
        lines.append([f"`{method}`", where(method), *(_mark(rows.get((method, K))) for K in budgets)])
    whole, none = (found[name]["macro"]["points"] for name in ("vanilla", "drop-all"))
    note = f"All 196 tokens: **{whole:.1f}**; none from layer 2 on: {none:.1f}. {_note(found)}"
    return f"{markdown(lines)}\n{note}\n"


def ninth() -> str:
    """For the README: K = N/9, both splits, at equal K and at equal mean."""
    lines, found = [["rule", "prunes"]], {split: result(split) for split in SPLITS}
    for split in SPLITS:
        lines[0] += [f"{split}, {BY[by]}" for by in BY]
    for method in _ordered(found[SPLITS[0]]):
        cells = []
        for split in SPLITS:
            rows = {(r["method"], r["budget"], r["by"]): r for r in found[split]["rows"]}
            cells += [_mark(rows.get((method, NINTH, by))) for by in BY]
        lines.append([f"`{method}`", where(method), *cells])
    whole = " and ".join(f"**{found[split]['vanilla']['macro']['points']:.1f}** ({split})" for split in SPLITS)
    return f"{markdown(lines)}\nK = {NINTH} of 196. All tokens: {whole}. {_note(found[SPLITS[0]])}\n"


def runs() -> str:
    """K = N/9 on easy scenes: the embedded checkpoint, and one that was trained with the same losses."""
    both = {"checkpoint": result("easy"), "checkpoint-earlier": result("easy", "earlier")}
    lines = [["rule", "prunes", *(f"`{model}`, {BY[by]}" for by in BY for model in both)]]
    rows = {
        (model, r["method"], r["by"]): r for model, found in both.items() for r in found["rows"] if r["budget"] == NINTH
    }
    for method in _ordered(both["checkpoint"]):
        cells = [_mark(rows.get((model, method, by))) for by in BY for model in both]
        lines.append([f"`{method}`", where(method), *cells])
    whole = " and ".join(f"{found['vanilla']['macro']['points']:.1f} (`{model}`)" for model, found in both.items())
    return f"{markdown(lines)}\nK = {NINTH} of 196, easy scenes. All tokens: {whole}. {_note(both['checkpoint'])}\n"


def _note(found: dict) -> str:
    return (
        f"Percent right, mean of nine kinds of questions, {found['setup']['n']} of each; ▲ better, ▼ worse than MoB: "
        "the paired 95 % interval, by scenes, leaves out 0."
    )


def _mark(row: dict | None) -> str:
    if row is None:
        return "–"
    minus, value = row.get("minus_mob"), f"{row['macro']['points']:.1f}"
    if minus is None:
        return f"**{value}**"
    return value + (" ▲" if minus["low"] > 0 else " ▼" if minus["high"] < 0 else "")


def full(split: str) -> str:
    """Every row: accuracy with intervals, by coupling, the difference from MoB, and what it costs."""
    head = "MoB's K, compared at, rule, K, tokens a layer, right [95 %], weak, strong, minus MoB [95 %], p"
    found = result(split)
    lines = [[*head.split(", "), "choosing, CPU ms", "pass, CPU ms", "of unpruned"]]
    for row in found["rows"]:
        minus = row.get("minus_mob")
        lines.append(
            [
                str(row["budget"]),
                BY[row["by"]],
                f"`{row['method']}`",
                str(row["K"]),
                f"{row['mean_tokens']:.1f}",
                interval(row["macro"], "points"),
                f"{row['weak']['points']:.1f}",
                f"{row['strong']['points']:.1f}",
                interval(minus, "points", "+.1f") if minus else "",
                "" if minus is None else "< 1e-12" if minus["p"] < 1e-12 else f"{minus['p']:.1g}",
                f"{row['pruner_ms']:.1f}",
                f"{row['prefill_ms']:.0f}",
                f"{row['share']:.2f}",
            ]
        )
    whole, timed = found["vanilla"]["prefill_ms"], found["setup"]["timed"]
    note = f"A pass over a batch of {timed['batch']} questions without pruning: {whole:.0f} CPU ms."
    return f"{markdown(lines)}\n{note}\n"


def tasks(split: str) -> str:
    """The plainest rules on each kind of question, with the ends: nothing pruned, and nothing left."""
    found = result(split)
    names = list(found["vanilla"]["tasks"])
    rows = {(row["method"], row["K"]): row for row in found["rows"] if row["by"] == "K"}
    shown = [key for name in PLAIN for key in rows if key[0] == name]
    rows |= {("vanilla", 196): found["vanilla"], ("drop-all", 0): found["drop-all"]}
    lines = [["rule", "K", "macro [95 %]", *names]]
    for method, K in [("vanilla", 196), *shown, ("drop-all", 0)]:
        row = rows[method, K]
        right = [f"{row['tasks'][name]:.1f}" for name in names]
        lines.append([f"`{method}`", str(K), interval(row["macro"], "points"), *right])
    return markdown(lines)


def coupling(split: str) -> str:
    """``prompt`` minus ``visual`` on weak and strong questions."""
    found = result(split)
    rows = {(row["method"], row["budget"]): row for row in found["rows"] if row["by"] == "K"}
    lines = [["K", "questions", "`prompt`", "`visual`", "difference [95 %]"]]
    for entry in found["prompt_minus_visual"]:
        if (group := entry["of"]) in ("weak", "strong"):
            cells = [f"{rows[name, entry['K']][group]['points']:.1f}" for name in ("prompt", "visual")]
            lines.append([str(entry["K"]), group, *cells, interval(entry, "points", "+.1f")])
    return markdown(lines)


def kinds(split: str) -> str:
    """``prompt`` minus ``visual`` on each kind of question."""
    entries = {(entry["of"], entry["K"]): entry for entry in result(split)["prompt_minus_visual"]}
    budgets = list(dict.fromkeys(K for _, K in entries))
    lines = [["coupling", "questions", *(f"K = {K}" for K in budgets)]]
    for coupling_, tasks_ in _couplings(split).items():
        lines += [
            [coupling_, task, *(interval(entries[task, K], "points", "+.1f") for K in budgets)] for task in tasks_
        ]
    return markdown(lines)


def eta() -> str:
    """Percent of the questions of each kind that ``auto`` takes for weakly coupled."""
    lines = [["scenes", "tau", "weak", "strong", "neither"]]
    for split in SPLITS:
        setup = result(split)["setup"]
        cells = [
            ", ".join(f"{task} {setup['above_tau'][task]:.0f}" for task in tasks_)
            for tasks_ in _couplings(split).values()
        ]
        lines.append([split, f"{setup['tau']:.3f}", *cells])
    return markdown(lines)


def _couplings(split: str) -> dict[str, list[str]]:
    """Kinds of questions by coupling, in the order of the evaluation."""
    kinds_ = SCENES[split]
    neither = [task for task in kinds_.tasks if task not in (*kinds_.weak, *kinds_.strong)]
    return {"weak": list(kinds_.weak), "strong": list(kinds_.strong), "neither": neither}


def regimes(split: str) -> str:
    """MoB's fixed regimes and the one that adapts, at each budget, and the prompt centres that they find."""
    rows = {(row["method"], row["budget"]): row for row in result(split)["rows"] if row["by"] == "K"}
    head = ["K", "default", "strong", "weak", "auto", "auto minus strong [95 %]", "auto minus weak [95 %]"]
    lines = [[*head, "prompt centres of K_p: strong", "weak"]]
    for K in dict.fromkeys(budget for _, budget in rows):
        cells = [interval(rows[name, K]["macro"], "points") for name in ("mob", "mob:strong", "mob:weak", "mob:auto")]
        fixed = rows["mob:auto", K]["minus_fixed"]
        cells += [interval(fixed[name], "points", "+.1f") for name in ("mob:strong", "mob:weak")]
        there = [rows[name, K] for name in ("mob:strong", "mob:weak")]
        lines.append([str(K), *cells, *(f"{row['centres']:.1f} of {row['centres_asked']:g}" for row in there)])
    return markdown(lines)


TABLES = {"compare": ninth, "compare-runs": runs, "compare-eta": eta}
for _split in SPLITS:
    for _by in BY:
        TABLES[f"compare-{_split}-{_by}"] = lambda split=_split, by=_by: summary(split, by)
    TABLES[f"compare-{_split}-full"] = lambda split=_split: full(split)
    TABLES[f"compare-{_split}-tasks"] = lambda split=_split: tasks(split)
    TABLES[f"compare-{_split}-regimes"] = lambda split=_split: regimes(split)
    TABLES[f"compare-{_split}-coupling"] = lambda split=_split: coupling(split)
    TABLES[f"compare-{_split}-kinds"] = lambda split=_split: kinds(split)


def plots() -> None:
    """images/compare.png: accuracy against the mean number of visual tokens a layer, one line a rule."""
    from matplotlib import pyplot

    if not SPLITS:
        return
    figure, axes = pyplot.subplots(
        1, len(SPLITS), figsize=(5 * len(SPLITS) + 1.6, 5), layout="constrained", squeeze=False, sharey=True
    )
    for place, split in zip(axes[0], SPLITS, strict=True):
        _draw(place, split)
    axes[0, 0].set_ylabel("percent right")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)
    figure.savefig(IMAGES / "compare.png", dpi=120, metadata={"Software": None})
    pyplot.close(figure)


def _draw(axes, split: str) -> None:
    found = result(split)
    for name, style in _styles(_ordered(result(SPLITS[0]))).items():
        points = sorted({(r["mean_tokens"], r["macro"]["points"]) for r in found["rows"] if r["method"] == name})
        axes.plot(*zip(*points, strict=True), markersize=4.5, label=name, **style)
    best = _frontier([(r["mean_tokens"], r["macro"]["points"]) for r in found["rows"]])
    axes.plot(*zip(*best, strict=True), color="0.85", linewidth=7, zorder=0, solid_joinstyle="round", label="the best")
    axes.axhline(found["vanilla"]["macro"]["points"], color="black", linewidth=0.8, linestyle="--", label="all tokens")
    axes.set(title=f"{split} scenes", xlabel="visual tokens a layer, mean")
    axes.spines[["top", "right"]].set_visible(False)


def _styles(names: list[str]) -> dict[str, dict]:
    """MoB black and thick; the others in the colour of where they prune."""
    from matplotlib import colormaps

    out = {"mob": {"color": "black", "marker": "o", "linewidth": 2.8, "zorder": 3}}
    for place, shades in COLOURS.items():
        here = [name for name in names if name != "mob" and where(name) == place]
        for number, name in enumerate(here):
            colour = colormaps[shades](0.15 + 0.5 * number / max(1, len(here) - 1))
            out[name] = {"color": colour, "marker": MARKERS[number % len(MARKERS)], "linewidth": 1.2}
    return {name: out[name] for name in names}


def _frontier(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those that no other beats with as few tokens (Pareto)."""
    best: list[tuple[float, float]] = []
    for tokens, right in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or right > best[-1][1]:
            best.append((tokens, right))
    return best
