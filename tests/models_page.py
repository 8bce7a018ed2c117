"""``docs/models.md``: which models were tested and what was found, as the tests of ``tests/families`` saw it.

``tests/families/conftest.py`` collects what a run finds; ``docs/models.json`` holds it for every version of
transformers, and the page is made from that file.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import transformers

DOCS = Path(__file__).parent.parent / "docs"
FOUND, PAGE = DOCS / "models.json", DOCS / "models.md"
VERSION = ".".join(transformers.__version__.split(".")[:2])

# Column of the page -> the test that fills it, and its second parameter.
CHECKS = {
    "all kept": ("test_keeping_everything_is_bit_identical", ("sdpa", "eager")),
    "SDPA": ("test_generate_equals_the_reference", ("sdpa",)),
    "eager": ("test_generate_equals_the_reference", ("eager",)),
    "2nd turn": ("test_a_second_turn_with_a_new_picture", ("",)),
    "beams": ("test_beams", ("",)),
}

INTRO = """# Models

`mob.prune` and `mob.attach` look at a model's structure, not at its name: where the visual tokens are, which layers
there are, what they are handed. This page is written by the tests (`tests/families`), which run tiny random models of
every family below through the stock classes of transformers, and compares them with a slow decoder that recomputes
everything without a cache or hooks (`tests/reference.py`). A class that is not listed is looked at in the same way when
it is to be pruned.

To write it anew, in an environment for each version of transformers:

```bash
MOB_WRITE_MODELS=1 python -m pytest tests/families -m "slow or not slow"
```

Without that variable the same tests fail where this page is not what they find.

## Tested

- **all kept**: with `K >= N` answers and logits are bit-identical to the unpruned model (SDPA and eager attention).
- **SDPA**, **eager**: answers, logits and kept tokens of a padded batch equal the slow decoder's (1e-6 in float64, 1e-4
  in float32).
- **2nd turn**: the same when the conversation goes on with a new picture; **beams**: beams of a batch equal beams of
  its samples alone. A dash: not tested.
- **layouts**: what is known of where a token was, for records, overlays and budgets per picture; `tokens only`: their
  numbers.
- **from layer**: the first layer at which tokens may leave, in the tiny model; more than 1 where features of the tower
  are added between layers.
"""

REFUSED = """
## Refused

With a `ValueError`, before anything runs. The message begins with the name of the class.
"""

UNRUN = """
## Accepted, but not run here

Classes of `AutoModelForImageTextToText` whose structure is accepted; nothing else is known of them.
"""

UNBUILT = """
## Not looked at

Their default configs make no model in the environment of the tests.
"""


def load() -> dict[str, Any]:
    """What was found, by version of transformers."""
    return json.loads(FOUND.read_text()) if FOUND.exists() else {}


def write(found: dict[str, Any]) -> None:
    versions = sorted(found, key=lambda version: [int(part) for part in version.split(".")])
    FOUND.write_text(one_line_each({version: found[version] for version in versions}, levels=3) + "\n")
    PAGE.write_text(page(load()))


def one_line_each(values: Any, levels: int, indent: str = "") -> str:
    """JSON with the entries of the innermost of ``levels`` dicts on a line each, for readable diffs."""
    if not levels or not isinstance(values, dict) or not values:
        return json.dumps(values)
    lines = [f'{indent} "{key}": {one_line_each(value, levels - 1, indent + " ")}' for key, value in values.items()]
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}"


def page(found: dict[str, Any]) -> str:
    """The page as Markdown."""
    parts = [INTRO, tested(found), REFUSED, refused(found)]
    known = {facts["class"] for version in found.values() for facts in version["families"].values()}
    known |= {name for version in found.values() for name in version["refused"]}
    for title, key in ((UNRUN, "accepted"), (UNBUILT, "unbuilt")):
        names = sorted({name for version in found.values() for name in version[key]} - known)
        known |= set(names)
        if names:
            parts += [title, "\n" + ", ".join(f"`{name}`" for name in names) + "\n"]
    return "".join(parts)


def tested(found: dict[str, Any]) -> str:
    names = list(dict.fromkeys(name for version in found.values() for name in version["families"]))
    columns = ["family", "class", "layouts", "from layer", *CHECKS, "transformers"]
    lines = ["", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for name in sorted(names, key=lambda name: order(found, name)):
        versions = {version: all_found["families"].get(name) for version, all_found in found.items()}
        versions = {version: facts for version, facts in versions.items() if facts}
        newest = list(versions.values())[-1]
        cells = [f"`{name}`", f"`{newest['class']}`", newest["layouts"], str(newest["layer"])]
        cells += [cell(check, versions) for check in CHECKS]
        lines.append("| " + " | ".join([*cells, ", ".join(versions)]) + " |")
    return "\n".join(lines) + "\n"


def order(found: dict[str, Any], name: str) -> int:
    """Where the newest version that has a family lists it."""
    return max(list(version["families"]).index(name) for version in found.values() if name in version["families"])


def cell(check: str, versions: dict[str, dict]) -> str:
    """What a check found, in one word where all versions agree."""
    words = {"passed": "yes", "failed": "no"}
    found = {version: words.get(facts["checks"].get(check), "-") for version, facts in versions.items()}
    if len(set(found.values())) == 1:
        return next(iter(found.values()))
    return ", ".join(f"{word} ({version})" for version, word in found.items())


def refused(found: dict[str, Any]) -> str:
    """Messages and the classes that get them; a version where others do not refuse a class, or say something else."""
    known: dict[str, set[str]] = {}
    said: dict[tuple[str, str], list[str]] = {}
    for version, run in found.items():
        classes = {facts["class"] for facts in run["families"].values()}
        for name in classes | set(run["accepted"]) | set(run["refused"]):
            known.setdefault(name, set()).add(version)
        for name, message in run["refused"].items():
            text = re.sub(r" \d+(\.\d+)+", "", message.removeprefix(name)).strip()
            said.setdefault((text, name), []).append(version)
    by_message: dict[str, list[str]] = {}
    for (text, name), versions in sorted(said.items()):
        only = "" if set(versions) == known[name] else f" ({', '.join(versions)})"
        by_message.setdefault(text, []).append(f"`{name}`{only}")
    rows = [f"| ... {text} | {', '.join(names)} |" for text, names in by_message.items()]
    return "\n".join(["", "| message | classes |", "|---|---|", *rows]) + "\n"
