"""Answers on disk while they come, so that an evaluation that was stopped goes on where it was (``resume=FOLDER``).

lmms-eval's own --use_cache writes nothing before the last answer is there, and keeps no records of what was pruned.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_FILES = "answers-*.jsonl"


class Journal:
    """A folder of JSON lines. Every process writes a file of its own and knows what all files held when it began."""

    def __init__(self, folder: str | Path) -> None:
        """ValueError where the folder cannot be written."""
        self.folder = Path(folder).expanduser()
        self._known: dict[str, dict[str, Any]] = {}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for file in sorted(self.folder.glob(_FILES)):
                for line in file.read_bytes().splitlines():
                    self._take(line)
        except OSError as error:
            raise ValueError(f"resume={folder} cannot be used ({error.strerror}): name a folder to write to") from error
        self.file = self.folder / _FILES.replace("*", uuid.uuid4().hex)

    def _take(self, line: bytes) -> None:
        try:
            entry = json.loads(line)
            self._known[entry.pop("key")] = entry
        except (ValueError, KeyError, AttributeError, TypeError):
            return  # the line that was being written when the process was stopped

    def get(self, key: str) -> dict[str, Any] | None:
        return self._known.get(key)

    def add(self, entries: Iterable[tuple[str, dict[str, Any]]]) -> None:
        """Write (key, JSON-ready entry) pairs; on disk when this returns."""
        lines = [json.dumps({"key": key, **entry}, allow_nan=True) + "\n" for key, entry in entries]
        with self.file.open("ab") as file:
            file.write("".join(lines).encode())
            file.flush()
            os.fsync(file.fileno())

    def __len__(self) -> int:
        return len(self._known)
