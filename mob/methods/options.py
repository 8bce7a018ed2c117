"""Numbers among the options of rules."""

from __future__ import annotations

from typing import Any


def check_number(name: str, value: Any, low: float, high: float, end: bool = True) -> None:
    """ValueError unless it is a number from ``low`` to ``high``, which itself is allowed with ``end``; NaN is none."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not low <= value <= high or (value == high and not end):
        raise ValueError(f"{name}={value!r}: give a number from {low:g} to {'' if end else 'below '}{high:g}")
