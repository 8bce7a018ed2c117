"""Was an answer right? From a metric that the log holds, else by comparing answer and target."""

from __future__ import annotations

import math
import re
import string
from collections.abc import Sequence
from typing import Any

RIGHT_FROM = 0.5  # VQA scores are shares of annotators who agree
_METRIC = re.compile(
    r"(^|_)(exact_match|accuracy|acc|correct|is_correct|match|anls|em|score|relaxed_overall)$", re.IGNORECASE
)
_FIRST = ("exact_match", "accuracy", "acc", "correct")
_ANSWERS, _TRUTHS = ("prediction", "pred", "parsed_pred", "pred_answer"), ("ground_truth", "answer", "gt", "target")
_PLAIN = str.maketrans("", "", string.punctuation)
_LETTER = re.compile(r"^\W*([A-Za-z])(?:[\s).:,]|$)")


def verdict(line: dict[str, Any], answer: str, targets: Sequence[str]) -> tuple[bool | None, str]:
    """(right, wrong or unknown; what says so) of one line of a log."""
    names = [name for name in line if isinstance(name, str) and _METRIC.search(name)]
    # A stable sort: the usual names first, others as the log has them.
    for name in sorted(names, key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST)):
        found = _of_metric(line[name])
        if found is not None:
            return found[0], f"{name}: {found[1]}"
    if not answer or not targets:
        return None, ""
    return any(same(answer, target) for target in targets), "answer compared with target"


def same(answer: str, target: str) -> bool:
    """Equal but for case, punctuation and articles; a letter as target also where the answer begins with it."""
    if _words(answer) == _words(target):
        return True
    letter = _LETTER.match(answer)
    return bool(letter) and len(target.strip()) == 1 and letter[1].upper() == target.strip().upper()


def _words(text: str) -> list[str]:
    plain = text.lower().translate(_PLAIN).split()
    return [word for word in plain if word not in ("a", "an", "the")] or plain or [text]


def _of_metric(value: Any) -> tuple[bool, str] | None:
    """(right, its text) of a metric's value; None where it does not say."""
    if isinstance(value, bool):
        return value, str(value).lower()
    if isinstance(value, (int, float)):
        # Larger numbers are points, times or perplexities: no telling what is right.
        return (value >= RIGHT_FROM, f"{value:.3g}") if math.isfinite(value) and 0 <= value <= 1 else None
    if not isinstance(value, dict):
        return None
    for name in ("score", "correct", "accuracy", "exact_match"):
        found = _of_metric(value[name]) if not isinstance(value.get(name), (dict, type(None))) else None
        if found is not None:
            return found
    given, truth = (next((value[name] for name in names if name in value), None) for names in (_ANSWERS, _TRUTHS))
    if isinstance(given, str) and isinstance(truth, str):
        return same(given, truth), f"{given[:40]} / {truth[:40]}"
    return None
