"""Tables and plots of what ``cpu.sh`` measured, for ``make_tables.py``."""

from __future__ import annotations

import json
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "cpu"
IMAGES = Path(__file__).parent.parent / "images"
_MIB = 2**20
_BLUE, _GREY = "#1f6fb2", "#777777"


def result(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text())


def models(*names: str) -> str:
    """One row for each batch and budget of some runs of ``bench.py``."""
    head = "threads, batch, K of N, selection ms, its share, prefill ms, of unpruned, ideal, ratio to ideal"
    lines = [[*head.split(", "), "first token", "per token", "KV MiB", "peak MiB"]]
    for name in names:
        run = result(name)
        for row in run["rows"]:
            lines.append([str(run["provenance"]["threads"]), *_model_row(row)])
    return markdown(lines)


def _model_row(row: dict) -> list[str]:
    prefill = row["prefill_ms"]
    size = [str(row["batch"]), f"{row['K']} of {row['N']}"]
    memory = [f"{row['kv_bytes'] / _MIB:.1f}", f"{row['peak_bytes'] / _MIB:.0f}"]
    if row["method"] == "none":
        stages = [f"{row[name]['median']:.0f} ms" for name in ("first_token_ms", "per_token_ms")]
        return [*size, "", "", interval(prefill, "median", ".0f"), "", "", "", *stages, *memory]
    shares, ideal = row["shares"], row["ideal_prefill_share"]
    share = shares["prefill"]
    chosen = row["pruner_ms"]["median"]
    return [
        *size,
        f"{chosen:.1f}",
        f"{chosen / prefill['median']:.2%}",
        interval(prefill, "median", ".0f"),
        interval(share, "median", ".3f"),
        f"{ideal:.3f}",
        f"{share['median'] / ideal:.3f}",
        f"{shares['first_token']['median']:.2f}",
        f"{shares['per_token']['median']:.2f}",
        *memory,
    ]


def speed() -> str:
    """The README's: what a budget saves of a prefill."""
    run = result("mid")
    lines = [["K of 576", "prefill", "multiply-accumulates", "first token", "KV cache", "selection, of the prefill"]]
    for row in run["rows"][1:]:
        shares = row["shares"]
        lines.append(
            [
                str(row["K"]),
                interval(shares["prefill"], "median", ".2f"),
                f"{row['ideal_prefill_share']:.2f}",
                f"{shares['first_token']['median']:.2f}",
                f"{row['kv_share']:.2f}",
                f"{row['pruner_ms']['median'] / row['prefill_ms']['median']:.1%}",
            ]
        )
    note = (
        "Shares of the unpruned run, medians [quartiles] over neighbours in time; 8 layers of width 1024, 576 visual "
        f"and 64 text tokens, pruned at layer 2, float32, {run['provenance']['threads']} thread of a CPU."
    )
    return f"{markdown(lines)}\n{note}\n"


def selection(*names: str) -> str:
    """Sizes of some runs of ``bench.py --selection``, one after the other."""
    lines = [["batch", "N, L, K", "data", "ms", "Gram matrix, ms", "whole rows, ms", "Gram / ours", "rows / ours"]]
    for row in (row for name in names for row in result(name)["rows"]):
        times, slower = row["ms"], row["times_slower"]
        lines.append(
            [
                str(row.get("batch", 1)),
                f"{row['N']}, {row['L']}, {row['K']}",
                row["data"],
                *(interval(times[name], "median", ".1f") for name in ("mob", "gram", "rows")),
                *(f"{slower[name]['median']:.2f}" for name in ("gram", "rows")),
            ]
        )
    return markdown(lines)


def growth() -> str:
    lines = [["along", "from .. to", "ms", "exponent", "of the last two sizes", "MiB", "exponent of memory"]]
    for row in result("growth")["rows"]:
        first, last, axis = row["points"][0], row["points"][-1], row["axis"]
        lines.append(
            [
                axis,
                f"{first[axis]} .. {last[axis]}",
                f"{first['ms']['median']:.1f} .. {last['ms']['median']:.1f}",
                f"{row['time_exponent']:.2f}",
                f"{row['time_exponent_of_last_two']:.2f}",
                f"{first['peak_bytes'] / _MIB:.0f} .. {last['peak_bytes'] / _MIB:.0f}",
                f"{row['memory_exponent']:.2f}",
            ]
        )
    return markdown(lines)


TABLES = {
    "speed": speed,
    "speed-mid": lambda: models("mid", "mid-2-threads"),
    "speed-batch": lambda: models("batch"),
    "speed-pictures": lambda: models("pictures"),
    "speed-scenes": lambda: models("scenes"),
    "speed-7b": lambda: models("llava-1.5-7b"),
    "speed-selection": lambda: selection("selection", "selection-8"),
    "speed-growth": growth,
}


def plots() -> None:
    """images/prefill.png: prefill against K with the ideal line; images/selection.png: selection against N."""
    import matplotlib

    matplotlib.use("Agg")
    _plot("prefill.png", _prefill)
    _plot("selection.png", _selection)


def _plot(name: str, draw) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5.2, 3.4), layout="constrained")
    draw(axes)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(IMAGES / name, dpi=130, metadata={"Software": None})
    pyplot.close(figure)


def _prefill(axes) -> None:
    whole, *rows = result("mid")["rows"]
    rows = sorted(rows, key=lambda row: row["K"])
    budgets = [row["K"] for row in rows]
    shares = [row["shares"]["prefill"] for row in rows]
    middle = [share["median"] for share in shares]
    around = [[s["median"] - s["low"] for s in shares], [s["high"] - s["median"] for s in shares]]
    ideal = [(row["K"], row["ideal_prefill_share"]) for row in rows] + [(whole["N"], 1.0)]
    axes.plot(*zip(*ideal, strict=True), color=_GREY, linestyle="--", label="ideal: multiply-accumulates")
    axes.errorbar(budgets, middle, yerr=around, color=_BLUE, marker="o", capsize=3, label="measured, with quartiles")
    axes.plot([whole["N"]], [1.0], color=_GREY, marker="s", linestyle="", label="unpruned")
    axes.set(xlabel=f"visual tokens kept, of {whole['N']}", ylabel="prefill, share of unpruned", ylim=(0, 1.05))
    axes.legend(frameon=False)


def _selection(axes) -> None:
    (row,) = [row for row in result("growth")["rows"] if row["axis"] == "N"]
    points = [(point["N"], point["ms"]["median"]) for point in row["points"]]
    sizes, times = zip(*points, strict=True)
    axes.loglog(sizes, times, color=_BLUE, marker="o", label=f"measured, exponent {row['time_exponent']:.2f}")
    straight = [times[-1] * size / sizes[-1] for size in sizes]
    axes.loglog(sizes, straight, color=_GREY, linestyle="--", label="in proportion to N")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    point = row["points"][0]
    axes.set(xlabel=f"visual tokens N (L = {point['L']}, K = {point['K']}, d = 4096)", ylabel="selection, ms")
    axes.legend(frameon=False)


def interval(entry: dict, key: str, form: str = ".1f") -> str:
    """A measured value with the bounds of its interval."""
    return f"{entry[key]:{form}} [{entry['low']:{form}}, {entry['high']:{form}}]"


def markdown(lines: list[list[str]]) -> str:
    """A table; the first line is its head."""
    head, *rest = ("| " + " | ".join(cells) + " |" for cells in lines)
    return "\n".join([head, "|" + "---|" * len(lines[0]), *rest]) + "\n"
