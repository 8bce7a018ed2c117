"""Which pruning rules there are: ``python -m mob.methods``, one of them in full: ``python -m mob.methods fastv``."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import sys
from collections.abc import Mapping, Sequence

from mob.methods import METHODS
from mob.methods.base import is_early, looks_at, unknown

COLUMNS = ("name", "objective", "where", "needs", "batch", "paper")
HEAD = {"where": "prunes", "needs": "looks at", "batch": "batches"}


def describe(name: str) -> dict[str, object]:
    """What a rule is, JSON-ready. ValueError with a suggestion for an unknown name."""
    if name not in METHODS:
        raise ValueError(unknown(name))
    cls = METHODS[name]
    options = {f.name: _default(f) for f in dataclasses.fields(cls)}
    return {
        "name": name,
        "paper": getattr(cls, "paper", "") or inspect.getdoc(inspect.getmodule(cls)).splitlines()[0],
        "objective": getattr(cls, "objective", ""),
        "where": getattr(cls, "where", _where(cls, options)),
        "stages": getattr(cls, "stages", 1),
        "needs": list(looks_at(cls)),
        "batch": bool(getattr(cls, "batch", True)),
        "options": options,
        "text": inspect.getdoc(cls),
    }


def _where(cls: type, options: Mapping[str, object]) -> str:
    if is_early(cls):
        return "before the decoder"
    return "layer 2, or any other" + (", or before the decoder" if "early" in options else "")


def _default(one: dataclasses.Field) -> object:
    return None if one.default is dataclasses.MISSING else one.default


def _cells(one: Mapping[str, object]) -> dict[str, object]:
    """What ``describe`` says, in words."""
    return dict(one, needs=", ".join(one["needs"]) or "nothing", batch="yes" if one["batch"] else "no")


def table(names: Sequence[str]) -> str:
    """One line for each rule."""
    rows = [[HEAD.get(column, column) for column in COLUMNS]]
    rows += [[str(one[column]) for column in COLUMNS] for one in map(_cells, map(describe, names))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def in_full(name: str) -> str:
    """Everything that is known of a rule."""
    one = describe(name)
    facts = [f"{HEAD.get(key, key)}: {_cells(one)[key]}" for key in ("paper", "objective", "where", "needs", "batch")]
    options = ", ".join(f"{key}={value!r}" for key, value in one["options"].items()) or "none"
    return "\n".join([name, *facts, f"options: {options}", "", str(one["text"])])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m mob.methods", description="Pruning rules, by name.")
    parser.add_argument("names", nargs="*", metavar="RULE", help="say everything about these")
    parser.add_argument("--json", action="store_true", help="as JSON, for programs")
    args = parser.parse_args(arguments)
    try:
        chosen = args.names or sorted(METHODS)
        if args.json:
            print(json.dumps([describe(name) for name in chosen], indent=1))
        else:
            print("\n\n".join(map(in_full, args.names)) if args.names else table(chosen))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
