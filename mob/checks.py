"""Values that settings and options of rules share."""

from __future__ import annotations

from typing import Any


def check_distance(name: str, value: Any) -> None:
    """ValueError unless it is None or a distance of unit rows, 0..2."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 2):
        raise ValueError(f"{name}={value!r}: give a distance of unit rows, between 0 and 2")


def check_flag(name: str, value: Any) -> None:
    """ValueError unless it is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name}={value!r}: give True or False")
