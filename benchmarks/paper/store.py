"""The file of measured cells. Tables and figures share it: what one has measured, another does not measure again."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from paper.grid import Cell
from paper.runners import Result, Runner


def key(runner: Runner, cell: Cell) -> str:
    """Names what decides a number: the runner, the checkpoint, and the cell's identity."""
    decides = {"runner": runner.name, "checkpoint": runner.checkpoint(cell), "extra": getattr(runner, "extra", "")}
    text = json.dumps(decides | cell.identity(), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Store:
    """Cells by key in one JSON file, written after each; two commands may add to it at once."""

    def __init__(self, path: str | Path) -> None:
        """ValueError where the file is there and is not such a file."""
        self.path = Path(path)
        self.cells = self._read()

    def get(self, runner: Runner, cell: Cell) -> dict[str, Any] | None:
        return self.cells.get(key(runner, cell))

    def add(self, runner: Runner, cell: Cell, result: Result, facts: dict[str, Any]) -> None:
        entry = {
            "runner": runner.name,
            **asdict(cell),
            "extra": getattr(runner, "extra", ""),
            **asdict(result),
            **facts,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_suffix(".lock").open("w") as lock:
            _lock(lock)
            self.cells = self._read() | {key(runner, cell): entry}
            new = self.path.with_suffix(".new")
            new.write_text(json.dumps({"cells": self.cells}, indent=1, default=str) + "\n")
            os.replace(new, self.path)

    def _read(self) -> dict[str, Any]:
        if not self.path.exists():
            return {}
        try:
            return json.loads(self.path.read_text())["cells"]
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
            raise ValueError(f"{self.path} is not a file of results: move it away, or give another --json") from None


def _lock(file: Any) -> None:
    try:
        import fcntl
    except ImportError:  # no such thing on Windows: one command at a time there
        return
    fcntl.flock(file, fcntl.LOCK_EX)
