"""Reading what benchmarks come as: JSON, JSON lines and tables; whatever is wrong is one line that says where."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

PathLike = str | os.PathLike[str]


def read_text(path: PathLike) -> str:
    """A UTF-8 file. ValueError, one line, where it is missing or something else."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ValueError(f"there is no file {path}: check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ValueError(f"{path} cannot be read ({reason})") from None


def read_json(path: PathLike) -> Any:
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from None


def json_rows(path: PathLike, needs: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file; empty lines are skipped.

    Raises:
        ValueError: no such file; or a line is no object, or lacks one of the fields in ``needs``.
    """
    for number, text in enumerate(read_text(path).split("\n"), 1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error.msg})") from None
        check_fields(row, needs, f"{path}, line {number}")
        yield row


def json_list(path: PathLike, needs: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The objects of a JSON file that holds one list of them."""
    rows = read_json(path)
    if not isinstance(rows, list):
        raise ValueError(f"{path} holds no list")
    for number, row in enumerate(rows):
        check_fields(row, needs, f"{path}, entry {number}")
    return rows


def table_rows(path: PathLike, needs: Sequence[str] = ()) -> Iterator[dict[str, str]]:
    """The rows of a tab-separated table with a header, as MMBench is; empty cells are ""."""
    csv.field_size_limit(sys.maxsize)  # pictures stand in cells as base64 text
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, delimiter="\t", restval="")
            if missing := [name for name in needs if name not in (reader.fieldnames or ())]:
                raise ValueError(f"{path} has no column {missing[0]!r}: it has {', '.join(reader.fieldnames or ())}")
            for row in reader:
                if None in row:
                    raise ValueError(f"{path}, line {reader.line_num}: more cells than the header has columns")
                yield row
    except FileNotFoundError:
        raise ValueError(f"there is no file {path}: check the path") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read as a table ({error})") from None


def check_fields(row: Any, needs: Sequence[str], where: str) -> None:
    if not isinstance(row, dict):
        raise ValueError(f"{where}: not an object in braces")
    if missing := [name for name in needs if name not in row]:
        raise ValueError(f"{where}: there is no {missing[0]!r}")


def folder(path: PathLike, flag: str) -> Path:
    """A folder that is there; "" is the current one."""
    place = Path(path)
    if not place.is_dir():
        raise ValueError(f"{flag} {path}: there is no such folder")
    return place


def write_json(path: PathLike, value: Any, indent: int | None = None) -> None:
    write_text(path, json.dumps(value, indent=indent, ensure_ascii=False) + "\n")


def write_text(path: PathLike, text: str) -> None:
    write_bytes(path, text.encode("utf-8", "replace"))


def write_bytes(path: PathLike, content: bytes) -> None:
    """Write a file and the folders above it."""
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(content)
    except OSError as error:
        raise ValueError(f"{path} cannot be written ({error.strerror or error})") from None
