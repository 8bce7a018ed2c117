"""What the ``eval_*`` commands share: a parser, one line for what is wrong, answers by question. Needs no torch."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

from llava.eval.files import json_rows


def make_parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=f"python -m {name}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def finish(work: Callable[[], Any]) -> int:
    """0; or 2 and one line. A failed picture (``error``) counts as an empty answer."""
    try:
        work()
    except ValueError as error:
        say(f"error: {error}")
        return 2
    except BrokenPipeError:  # | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def answers_of(path: str, needs: Sequence[str] = ("question_id", "text")) -> list[dict[str, Any]]:
    """The lines of an answers file, in order."""
    rows = list(json_rows(path, needs))
    if not rows:
        raise ValueError(f"{path} holds no answers")
    if failed := sum(1 for row in rows if row.get("error")):
        say(f"note: {failed} of {len(rows)} answers are empty, because their pictures could not be read")
    return rows


def by_question(rows: Iterable[dict[str, Any]]) -> dict[Hashable, dict[str, Any]]:
    """Answers by ``question_id``; of several to one question the last.

    Raises:
        ValueError: two questions have the same id.
    """
    out: dict[Hashable, dict[str, Any]] = {}
    for row in rows:
        known = out.setdefault(row["question_id"], row)
        if known.get("prompt") != row.get("prompt"):
            raise ValueError(
                f"two questions have the id {row['question_id']!r}: number the questions, and ask them again"
            )
        out[row["question_id"]] = row
    return out


def complete(found: int, wanted: int, path: str) -> None:
    """Refuse to score part of a benchmark as if it were the whole."""
    if found < wanted:
        raise ValueError(f"{path} answers {found} of {wanted} questions: finish the run first")


def say(text: str) -> None:
    print(text, file=sys.stderr)


def percent(part: float, whole: float) -> float:
    return 100 * part / whole if whole else 0.0
