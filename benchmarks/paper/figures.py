"""Pictures of what was measured. Matplotlib is only needed here."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

from paper.grid import Grid
from paper.report import Line, Lookup, latency, lines

_MISSING = "drawing needs matplotlib: pip install matplotlib (the numbers above do not)"


def draw(grid: Grid, lookup: Lookup, path: Path) -> str:
    """Write the figure; a line that says where. ValueError without matplotlib, or without anything measured."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError(_MISSING) from None
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    if not DRAWN[grid.name](figure, grid, lookup):
        raise ValueError("nothing to draw: no cell of this figure was run")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return f"figure: {path}"


def points(grid: Grid, lookup: Lookup) -> list[tuple[Line, str, float, float]]:
    """Figure 3: (line, column, seconds a question, score) of what was measured."""
    start = next((row for row in grid.rows if row.start_up), None)
    out = []
    for line in lines(grid, lookup):
        for column in grid.columns:
            seconds = latency(line.entries[column], lookup(start, column) if start else None)
            score = line.measured[column]
            if seconds is not None and score is not None:
                out.append((line, column, seconds, score))
    return out


def latencies(grid: Grid, lookup: Lookup) -> str:
    """Figure 3 as text."""
    rows = [
        f"  {column}, {line.row.group}, {line.row.label}: {seconds:.4f} s a question, score {score:.1f}"
        for line, column, seconds, score in points(grid, lookup)
    ]
    return "\n".join(["Latency:", *(rows or ["  not run"])]) + "\n"


def coupling(grid: Grid, lookup: Lookup) -> str:
    """Figure 9 as text."""
    out = ["eta (Hausdorff distance of picture and prompt):"]
    for line in lines(grid, lookup):
        for column in grid.columns:
            eta = (line.entries[column] or {}).get("eta")
            words = (
                f"mean {eta['mean']:.3f}, 5 to 95 %: {eta['p5']:.3f} to {eta['p95']:.3f}, {eta['count']} questions"
                if eta
                else "not run"
            )
            out.append(f"  {column}: {words}")
    return "\n".join(out) + "\n"


def _figure3(figure: Any, grid: Grid, lookup: Lookup) -> bool:
    axes, found = figure.subplots(), points(grid, lookup)
    for (column, label), group in groupby(
        sorted(found, key=lambda p: (p[1], p[0].row.label, p[2])), key=lambda p: (p[1], p[0].row.label)
    ):
        group = list(group)
        axes.plot([p[2] for p in group], [p[3] for p in group], marker="o", label=f"{column}, {label}")
        for line, _, seconds, score in group:
            axes.annotate(line.row.group, (seconds, score), textcoords="offset points", xytext=(4, 4), fontsize=7)
    axes.set(xlabel="seconds a question", ylabel="score", title=grid.title)
    if found:
        axes.legend(fontsize=8)
    return bool(found)


def _figure4_6(figure: Any, grid: Grid, lookup: Lookup) -> bool:
    groups = [(name, list(rows)) for name, rows in groupby(lines(grid, lookup), key=lambda line: line.row.group)]
    sweeps = [(name, rows) for name, rows in groups if "over " in name]
    drawn = False
    for axes, (name, rows) in zip(figure.subplots(1, max(1, len(sweeps)), squeeze=False)[0], sweeps, strict=False):
        for column in grid.columns:
            known = [line for line in rows if line.measured[column] is not None]
            at = [int(line.row.label.split("=")[1]) for line in known]
            axes.plot(at, [line.measured[column] for line in known], marker="o", label=column)
            drawn = drawn or bool(known)
        axes.set(xlabel=name.split("over ")[1])
        axes.tick_params(labelsize=7)
        axes.legend(fontsize=7)
    return drawn


def _figure9(figure: Any, grid: Grid, lookup: Lookup) -> bool:
    axes, drawn = figure.subplots(), False
    for line in lines(grid, lookup):
        for column in grid.columns:
            eta = (line.entries[column] or {}).get("eta")
            if eta:
                edges = [float(edge) for edge in eta["histogram"]]
                shares = [count / eta["count"] for count in eta["histogram"].values()]
                axes.plot(edges, shares, drawstyle="steps-post", label=column)
                drawn = True
    axes.set(xlabel="eta", ylabel="share of questions", title=grid.title)
    if drawn:
        axes.legend(fontsize=8)
    return drawn


DRAWN: dict[str, Callable[[Any, Grid, Lookup], bool]] = {
    "figure3": _figure3,
    "figure4_6": _figure4_6,
    "figure9": _figure9,
}
EXTRA_TEXT = {"figure3": latencies, "figure9": coupling}
