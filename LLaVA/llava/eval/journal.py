"""The answers file of an evaluation: one line an answer, safe at any moment, continued where it ended.

A line is written whole and handed to the disk before the next question is asked. What a killed process leaves is a
prefix of the answers, at worst with a torn last line, which the next run drops. Beside ``answers.jsonl`` lies
``answers.jsonl.settings.json`` with everything that decides the answers; a run with other settings is refused, because
half a file of each would be a number that means nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows: two runs on one file are not noticed there
    fcntl = None

from llava.eval.files import json_rows

SETTINGS = ".settings.json"


class Journal:
    """Answers so far, and where the next ones go. Made by ``opened``.

    Attributes:
        done: answers (dicts) that are on the disk, in the order of the questions.
    """

    def __init__(self, answers: Path, records: Path | None, settings: dict[str, Any]) -> None:
        self.answers, self.records = answers, records
        # Two files of one question get different ids, one file made twice gets the same.
        self.fingerprint = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        self.done: list[dict[str, Any]] = []
        self._files: dict[Path, IO[bytes]] = {}

    def answer_id(self, number: int) -> str:
        """A name for answer ``number`` of this run that does not change when the run is repeated."""
        return uuid.uuid5(uuid.NAMESPACE_OID, f"{self.fingerprint}/{number}").hex

    def write(self, answer: dict[str, Any], record: dict[str, Any] | None = None) -> None:
        """Append one answer. The record goes first: an answer on the disk has its record."""
        if self.records is not None:
            self._append(self.records, record or {})
        self._append(self.answers, answer)
        self.done.append(answer)

    def replace(self, changes: dict[int, tuple[dict[str, Any], dict[str, Any] | None]]) -> None:
        """Put new answers (and records) in the place of old ones; each file is exchanged in one step."""
        for number, (answer, _) in changes.items():
            self.done[number] = answer
        if self.records is not None:
            rows = list(json_rows(self.records))
            for number, (_, record) in changes.items():
                rows[number] = record or {}
            self._exchange(self.records, rows)
        self._exchange(self.answers, self.done)

    def _append(self, path: Path, row: dict[str, Any]) -> None:
        file = self._files.get(path)
        if file is None:
            file = self._files[path] = path.open("ab")
        file.write(line(row))
        file.flush()
        os.fsync(file.fileno())

    def _exchange(self, path: Path, rows: Sequence[dict[str, Any]]) -> None:
        write_whole(path, b"".join(map(line, rows)))
        if path in self._files:
            self._files.pop(path).close()

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()


def line(row: dict[str, Any]) -> bytes:
    """A row of a JSON-lines file."""
    return (json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", "replace")


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is at every moment either the old or the new one."""
    beside = path.with_name(path.name + ".part")
    with beside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


@contextmanager
def opened(
    answers: str | os.PathLike[str],
    keys: Sequence[dict[str, Any]],
    settings: dict[str, Any],
    *,
    records: str | os.PathLike[str] | None = None,
    resume: bool = True,
) -> Iterator[Journal]:
    """The journal of one answers file, for as long as the block lasts.

    Args:
        keys: per question, what its answer must say in these fields (``question_id``, ...): answers that are there
            already are compared with the first of them.
        settings: JSON-ready; everything that decides the answers.
        records: a second JSON-lines file with one row for each answer.
        resume: continue what is there; False: begin anew.

    Raises:
        ValueError: what is there belongs to other questions or settings, is no answers file, or is being written.
    """
    answers, records = Path(answers), Path(records) if records is not None else None
    if records is not None and records.resolve() == answers.resolve():
        raise ValueError(f"{answers}: answers and retained patches need two files")
    journal = Journal(answers, records, settings)
    try:
        for path in filter(None, (answers, records)):
            path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as locks:
            for path in filter(None, (answers, records)):
                locks.enter_context(_locked(path))
            _begin(journal, list(keys), json.loads(json.dumps(settings)), resume)
            try:
                yield journal
            finally:
                journal.close()
    except OSError as error:
        raise ValueError(f"{error.filename or answers} cannot be written ({error.strerror or error})") from error


def _begin(journal: Journal, keys: list[dict[str, Any]], settings: dict[str, Any], resume: bool) -> None:
    answers, records = journal.answers, journal.records
    sidecar = answers.with_name(answers.name + SETTINGS)
    if not resume:
        for path in filter(None, (answers, records)):
            write_whole(path, b"")
    rows = _whole_rows(answers)
    if rows:
        _compare(answers, sidecar, settings)
        _match(answers, rows, keys)
    else:
        write_whole(sidecar, (json.dumps(settings, indent=1, ensure_ascii=False) + "\n").encode())
        answers.touch()  # a chunk without questions has its file too
    if records is not None:
        _cut(records, len(rows), answers)
    journal.done = rows


def _whole_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file, whose torn last line, if there is one, is cut off; [] where there is no file."""
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    last = whole[whole.rfind(b"\n", 0, -1) + 1 :]
    if last and not _readable(last):  # a file system may keep a line's length and lose its bytes
        whole = whole[: -len(last)]
    if len(whole) < len(content):
        os.truncate(path, len(whole))
    return list(json_rows(path))


def _readable(text: bytes) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def _compare(answers: Path, sidecar: Path, settings: dict[str, Any]) -> None:
    remedy = "name another --answers-file, or give --no-resume to begin anew"
    try:
        old = json.loads(sidecar.read_text())
    except (OSError, ValueError):
        raise ValueError(f"{answers} has answers, but {sidecar.name} beside it is missing: {remedy}") from None
    for name in [*settings, *old]:
        then, now = old.get(name), settings.get(name)
        if then != now:
            raise ValueError(f"{answers} was begun with another {name} ({_short(then)}, now {_short(now)}): {remedy}")


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def _match(answers: Path, rows: list[dict[str, Any]], keys: list[dict[str, Any]]) -> None:
    if len(rows) > len(keys):
        raise ValueError(f"{answers} has {len(rows)} answers to {len(keys)} questions: name another --answers-file")
    for number, (row, key) in enumerate(zip(rows, keys, strict=False), 1):
        if any(row.get(name) != value for name, value in key.items()):
            raise ValueError(f"{answers}, line {number}, answers another question: name another --answers-file")


def _cut(records: Path, count: int, answers: Path) -> None:
    """Exactly ``count`` rows: one more may be there when the process was killed between the two files."""
    rows = _whole_rows(records)
    if len(rows) < count:
        raise ValueError(
            f"{answers} has {count} answers, {records} only {len(rows)} records: begin both anew with --no-resume, or "
            "leave out --log-retained-patches"
        )
    if len(rows) > count:
        write_whole(records, b"".join(map(line, rows[:count])))


@contextmanager
def _locked(answers: Path) -> Iterator[None]:
    """Two runs on one file would write every answer twice. The lock ends with its process, however that ends."""
    if fcntl is None:
        yield
        return
    with answers.with_name(f".{answers.name}.lock").open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{answers} is being written by another run: wait for it, or name another file") from None
        yield
