"""What was measured beside what the paper printed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from paper.grid import AVERAGE, Grid, Row

NOT_RUN, NO_SCORE, NOT_HERE = "not run", "server", "not in this repository"
_WHOLE = ("MME", "OCRBench")

Lookup = Callable[[Row, str], dict[str, Any] | None]


@dataclass(frozen=True)
class Line:
    """One row of a table: measured, printed, and measured minus printed, by column; None where there is none."""

    row: Row
    measured: dict[str, float | None]
    paper: dict[str, float | None]
    entries: dict[str, dict[str, Any] | None]

    def difference(self, column: str) -> float | None:
        measured, paper = self.measured.get(column), self.paper.get(column)
        return None if measured is None or paper is None else measured - paper


def lines(grid: Grid, lookup: Lookup) -> list[Line]:
    """Every row with its numbers; where the grid has averages, the mean of score / vanilla score over the columns.

    The average of a row that was measured on some benchmarks only stands beside the paper's over the same ones.
    """
    averages = any(AVERAGE in row.paper for row in grid.rows)
    entries = {row_key(row): {c: lookup(row, c) if row.here else None for c in grid.columns} for row in grid.rows}
    out = []
    for row in grid.rows:
        if row.start_up:
            continue
        found = entries[row_key(row)]
        measured = {column: entry["score"] if entry else None for column, entry in found.items()}
        paper: dict[str, float | None] = {column: row.paper.get(column) for column in grid.columns}
        if averages:
            base = next((other for other in grid.rows if other.vanilla and other.model == row.model), None)
            scores = {c: e["score"] if e else None for c, e in entries[row_key(base)].items()} if base else {}
            measured[AVERAGE], used = _relative(measured, scores, grid.columns)
            paper[AVERAGE] = row.paper.get(AVERAGE)
            if base and used and len(used) < sum(column in row.paper for column in grid.columns):
                paper[AVERAGE], _ = _relative(row.paper, base.paper, used)
        out.append(Line(row, measured, paper, found))
    return out


def row_key(row: Row) -> tuple[str, str, str]:
    return row.model, row.group, row.label


def _relative(scores: dict, base: dict, columns: tuple[str, ...]) -> tuple[float | None, tuple[str, ...]]:
    """Percent of the unpruned model's scores, and the columns that both have."""
    used = tuple(column for column in columns if scores.get(column) is not None and base.get(column))
    if not used:
        return None, ()
    return 100 * sum(scores[column] / base[column] for column in used) / len(used), used


def table(grid: Grid, lookup: Lookup) -> str:
    """Plain text: three lines a row (here, paper, difference), one block a group."""
    found = lines(grid, lookup)
    columns = [*grid.columns, *([AVERAGE] if found and AVERAGE in found[0].measured else [])]
    body: list[list[str]] = [["", "", *columns]]
    for (model, group), block in groupby(found, key=lambda line: (line.row.model, line.row.group)):
        body.append([f"{model}, {group}"])
        for line in block:
            body += _three(line, columns)
    out = [grid.title, *grid.notes, "", *_aligned(body)]
    out += ["", *_tokens(found)]
    return "\n".join(out).rstrip() + "\n"


def _three(line: Line, columns: list[str]) -> Iterator[list[str]]:
    row = line.row
    if row.here:
        yield [f"  {row.label}", "here", *(_here(line, column) for column in columns)]
    if any(value is not None for value in line.paper.values()):
        name = "" if row.here else f"  {row.label}"
        yield [name, "paper", *(_number(line.paper[column], column) for column in columns)]
    if row.here and any(line.difference(column) is not None for column in columns):
        yield ["", "difference", *(_number(line.difference(column), column, sign=True) for column in columns)]


def _here(line: Line, column: str) -> str:
    value = line.measured[column]
    if value is not None:
        return _number(value, column)
    return NO_SCORE if line.entries.get(column) else NOT_RUN


def _number(value: float | None, column: str, sign: bool = False) -> str:
    if value is None:
        return "-"
    plus = "+" if sign else ""
    if column in ("forward", "hausdorff", "selection", "all layers"):
        return f"{value:{plus}.3g}"
    return f"{value:{plus}.{0 if column in _WHOLE else 1}f}"


def _aligned(body: list[list[str]]) -> list[str]:
    wide = [line for line in body if len(line) > 1]
    widths = [max(len(line[at]) for line in wide) for at in range(len(wide[0]))]
    out = []
    for line in body:
        if len(line) == 1:
            out.append(line[0])
            continue
        left = [cell.ljust(width) for cell, width in zip(line[:2], widths[:2], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(line[2:], widths[2:], strict=True)]
        out.append("  ".join(left + right).rstrip())
    return out


def _tokens(found: list[Line]) -> Iterator[str]:
    """What K really meant: visual tokens a layer, layers before the pruning included."""
    rows = []
    for line in found:
        known = [e["tokens"] for e in line.entries.values() if e and e.get("tokens")]
        if known:
            N, K, per_layer = (sum(t[name] for t in known) / len(known) for name in ("N", "K", "mean_per_layer"))
            name = f"  {line.row.model}, {line.row.group}, {line.row.label}"
            rows.append(f"{name}: {K:.0f} of {N:.0f} kept, {per_layer:.0f} a layer on average")
    if rows:
        yield "Visual tokens (mean over questions):"
        yield from rows


def latency(entry: dict[str, Any] | None, start_up: dict[str, Any] | None) -> float | None:
    """Seconds a question; a run of few questions is subtracted where seconds include loading. None for resumed runs."""
    if not entry or not entry.get("questions") or entry["details"].get("resumed"):
        return None
    if not entry["includes_loading"]:
        return entry["seconds"] / entry["questions"]
    if not start_up or not start_up.get("questions") or entry["questions"] <= start_up["questions"]:
        return None
    return (entry["seconds"] - start_up["seconds"]) / (entry["questions"] - start_up["questions"])
