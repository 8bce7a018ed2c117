"""What was answered so far in ``compare.py``, on disk, so that it can be killed and go on."""

from __future__ import annotations

from pathlib import Path


class Answers:
    """Right or wrong for every question, and the commit that they were asked at: one file for each (rule, K), so that
    nothing is asked twice. Whoever changes a rule deletes its files. ``marks``: by rule, what else its answers depend
    on, a part of the file's name."""

    def __init__(self, folder: Path, commit: str | None, marks: dict[str, str] | None = None) -> None:
        self.folder, self.commit, self.marks = folder, commit, marks or {}
        folder.mkdir(parents=True, exist_ok=True)

    def file(self, row: tuple[str, int]) -> Path:
        mark = f"-{self.marks[row[0]]}" if row[0] in self.marks else ""
        return self.folder / f"{row[0]}-{row[1]}{mark}.txt"

    def get(self, row: tuple[str, int]) -> list[bool] | None:
        return [mark == "1" for mark in self._lines(row)[0]] if self.file(row).exists() else None

    def commit_of(self, row: tuple[str, int]) -> str:
        """That which it was asked at."""
        return self._lines(row)[1]

    def _lines(self, row: tuple[str, int]) -> list[str]:
        return self.file(row).read_text().splitlines()

    def put(self, row: tuple[str, int], correct: list[bool]) -> None:
        part = self.file(row).with_name(f"{self.file(row).name}.part")
        part.write_text("".join("01"[value] for value in correct) + f"\n{self.commit}\n")
        part.replace(self.file(row))
