"""The paper's tables, measured beside printed: ``python scripts/paper/tables.py table2 [options]``.

    python scripts/paper/tables.py table2 --smoke                   the pipeline, on the embedded checkpoint, minutes
    python scripts/paper/tables.py table2 --dry-run                 the command of every cell
    python scripts/paper/tables.py table2 --benchmarks GQA POPE --rows vanilla "K=64" --batch-size 8
    python scripts/paper/tables.py table2 --show                    what has been measured so far

A cell is one model, pruned in one way, on one benchmark. Each is written to the result file (--json) as soon as it is
measured, with versions, revisions, hardware, commit and command, and is not measured again with the same settings:
a stopped command goes on when given again. Tables and figures share that file. Exit code 1: some cells failed, and
say why; 2: wrong options. Cells without a result say "not run". See docs/reproducing.md before comparing numbers.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from mob.methods import METHODS
from paper import figures
from paper.grid import GRIDS, MODELS, ROOT, Cell, Grid, Row, grid
from paper.report import table
from paper.runners import RunFailed, Runner, facts, runner_for
from paper.store import Store

_SMOKE_N = 8


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=list(GRIDS))
    parser.add_argument("--smoke", action="store_true", help="the same rows on the embedded checkpoint and its scenes")
    parser.add_argument("--n", type=int, default=_SMOKE_N, help=f"with --smoke: questions of each kind ({_SMOKE_N})")
    group = parser.add_argument_group("which cells")
    group.add_argument("--benchmarks", nargs="+", metavar="NAME", help="columns of the table")
    group.add_argument("--rows", nargs="+", metavar="TEXT", help='rows whose "model, group, method" has one of these')
    group.add_argument("--only", metavar="TEXT", help='run the cells whose "model, group, method, benchmark" has this')
    group.add_argument("--also", nargs="+", default=[], metavar="RULE", help="rows of other rules of this repository")
    group = parser.add_argument_group("how")
    group.add_argument(
        "--harness", choices=("lmms", "llava"), default="lmms", help="lmms-eval, or LLaVA's scripts (lmms)"
    )
    group.add_argument("--checkpoint", nargs="+", default=[], metavar="MODEL=PATH", help="instead of the hub's")
    group.add_argument("--limit", type=int, help="only the first questions of a benchmark: for trying things out")
    group.add_argument("--batch-size", type=int, default=1)
    group.add_argument("--extra", default="", help="appended to --model_args, or to the flags of the scripts")
    group.add_argument("--again", action="store_true", help="measure cells anew that have a result")
    group.add_argument("--dry-run", action="store_true", help="print the command of every cell, run nothing")
    group.add_argument("--show", action="store_true", help="print what there is, run nothing")
    group = parser.add_argument_group("where")
    group.add_argument("--json", type=Path, help="results (runs/paper/results.json, of --smoke smoke.json)")
    group.add_argument("--work", type=Path, default=ROOT / "runs/paper/work", help="logs and answers of each cell")
    group.add_argument("--figure", type=Path, help="draw a figure here (runs/paper/<name>.png; needs matplotlib)")
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        chosen = _chosen(args)
        args.json = args.json or ROOT / "runs/paper" / ("smoke.json" if args.smoke else "results.json")
        store = Store(args.json)
        runners = _Runners(args)
        failed = {} if args.show or args.dry_run else measure(chosen, store, runners, args)
        if args.dry_run:
            _dry(chosen, store, runners, args)
            return 0
        _print(chosen, store, runners, args)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped: finished cells are kept; the same command goes on", file=sys.stderr)
        return 130
    for name, why in failed.items():
        print(f"failed: {name}: {why}", file=sys.stderr)
    return 1 if failed else 0


class _Runners:
    """The runner of a cell, by the command's options."""

    def __init__(self, args: argparse.Namespace) -> None:
        checkpoints = {}
        for text in args.checkpoint:
            name, mark, path = text.partition("=")
            if not mark or name not in MODELS:
                raise ValueError(f"--checkpoint {text}: give MODEL=PATH with one of {', '.join(MODELS)}")
            checkpoints[name] = str(Path(path).resolve()) if Path(path).is_dir() else path
        self.harness = args.harness
        self.options = {"checkpoints": checkpoints, "batch": args.batch_size, "extra": args.extra}
        self.work = args.work or Path(tempfile.gettempdir())

    def __call__(self, cell: Cell) -> Runner:
        return runner_for(cell, self.harness, work=self.work, **self.options)


def measure(chosen: Grid, store: Store, runners: Any, args: argparse.Namespace) -> dict[str, str]:
    """Run what has no result; the cells that failed, with the reason."""
    failed: dict[str, str] = {}
    todo = [(row, cell) for row, cell in chosen.cells(_limit(args)) if _wanted(row, cell, args.only)]
    done = set()
    for number, (row, cell) in enumerate(todo, 1):
        runner, identity = runners(cell), json.dumps(cell.identity(), sort_keys=True)
        if identity in done or (store.get(runner, cell) and not args.again):
            continue
        done.add(identity)
        if runner.name != "formula":
            print(f"[{number}/{len(todo)}] {_name(row, cell)}", file=sys.stderr, flush=True)
        try:
            if args.again and hasattr(runner, "forget"):
                runner.forget(cell)
            result = runner.run(cell)
            store.add(runner, cell, result, facts(runner, cell))
        except (RunFailed, OSError) as error:
            failed[_name(row, cell)] = " ".join(str(error).split())
    return failed


def _dry(chosen: Grid, store: Store, runners: Any, args: argparse.Namespace) -> None:
    for row, cell in chosen.cells(_limit(args)):
        if _wanted(row, cell, args.only):
            runner = runners(cell)
            there = " (has a result)" if store.get(runner, cell) else ""
            try:
                command = runner.command(cell)
            except RunFailed as error:
                command = f"# cannot be run: {error}"
            print(f"# {_name(row, cell)}{there}\n{command}")


def _print(chosen: Grid, store: Store, runners: Any, args: argparse.Namespace) -> None:
    def lookup(row: Row, column: str) -> dict[str, Any] | None:
        cell = row.cell(column, _limit(args))
        return store.get(runners(cell), cell)

    if args.limit is not None:
        note = f"LIMITED to the first {args.limit} questions: not comparable with the paper."
        chosen = replace(chosen, notes=(note, *chosen.notes))
    print(table(chosen, lookup))
    if chosen.name in figures.EXTRA_TEXT:
        print(figures.EXTRA_TEXT[chosen.name](chosen, lookup))
    if chosen.name in figures.DRAWN:
        path = args.figure or args.json.parent / f"{chosen.name}{'-smoke' if args.smoke else ''}.png"
        try:
            print(figures.draw(chosen, lookup, path))
        except ValueError as error:
            print(f"no figure: {error}")
    print(f"results: {args.json}")


def _chosen(args: argparse.Namespace) -> Grid:
    """The table with the rows and columns that were asked for."""
    for name in args.also:
        if name not in METHODS:
            raise ValueError(f"--also {name}: rules are {', '.join(sorted(METHODS))}")
    for name in ("n", "limit", "batch_size"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} {value}: give at least 1")
    if args.figure and args.table not in figures.DRAWN:
        raise ValueError(f"--figure: {args.table} is a table; figures are {', '.join(figures.DRAWN)}")
    whole = grid(args.table, tuple(args.also))
    whole = whole.smoke() if args.smoke else whole
    if args.benchmarks:
        if unknown := [name for name in args.benchmarks if name not in whole.columns]:
            raise ValueError(f"--benchmarks {' '.join(unknown)}: {args.table} has {', '.join(whole.columns)}")
        whole = replace(whole, columns=tuple(c for c in whole.columns if c in args.benchmarks))
    if args.rows:
        rows = tuple(row for row in whole.rows if any(text in _row_name(row) for text in args.rows))
        if not rows:
            raise ValueError(f"--rows: none of {args.table} has {' or '.join(args.rows)}; --dry-run lists them")
        whole = replace(whole, rows=rows)
    return whole


def _limit(args: argparse.Namespace) -> int | None:
    if args.table == "table7":
        return None
    return args.n if args.smoke else args.limit


def _row_name(row: Row) -> str:
    return f"{row.model}, {row.group}, {row.label}"


def _name(row: Row, cell: Cell) -> str:
    return f"{_row_name(row)}, {cell.benchmark}"


def _wanted(row: Row, cell: Cell, only: str | None) -> bool:
    return only is None or only in _name(row, cell)
