"""Logs of retained patches: read them, use them again, compare two: ``python -m mob_lmms_eval.logs RUN OTHER_RUN``.

A run is a file ``*_samples_<task>.jsonl`` of lmms-eval, or a folder with such files, of which the newest of each task
counts. Two runs are the same if they agree in everything but the milliseconds of the pruner, which vary.
Exit code 0: the same; 1: not; 2: something cannot be read.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mob.record import RetainedPatches

FIELD = "retained_patches"  # in an entry of token_counts
VARYING = ("milliseconds",)
_SAMPLES = "_samples_"
_OWN = ("task", "split", "doc_id", "idx", "pictures", "conv_template", "layers")

Line = dict[str, Any]


def read(path: str | Path) -> dict[tuple[str, int], Line]:
    """(task, doc_id) -> line of the log, by task and document.

    Raises:
        ValueError: no such log, or lines that are not JSON.
    """
    path, out = Path(path).expanduser(), {}
    files = {_task(path): path}
    if path.is_dir():
        files = {_task(file): file for file in sorted(path.rglob(f"*{_SAMPLES}*.jsonl"), key=lambda file: file.name)}
    if not files or not all(file.is_file() for file in files.values()):
        raise ValueError(f"{path} is no *{_SAMPLES}*.jsonl of lmms-eval, nor a folder with one: check the path")
    for task, file in sorted(files.items()):
        for number, text in enumerate(file.read_text().splitlines(), 1):
            try:
                line = json.loads(text)
                if (task, line["doc_id"]) in out:
                    raise ValueError(f"{file}, line {number}: document {line['doc_id']} is logged twice")
                out[task, line["doc_id"]] = line
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise ValueError(f"{file}, line {number} is no sample of lmms-eval ({error})") from None
    return dict(sorted(out.items()))


def _task(file: Path) -> str:
    return file.stem.partition(_SAMPLES)[2]


def retained(line: Line) -> Iterator[dict[str, Any]]:
    """The records of a line: one for each request of the document (several for multiple choice)."""
    for counts in line.get("token_counts") or ():
        if counts and counts.get(FIELD):
            yield counts[FIELD]


def record_of(entry: dict[str, Any]) -> RetainedPatches:
    """The entry's ``RetainedPatches``."""
    return RetainedPatches.from_dict({key: value for key, value in entry.items() if key not in _OWN})


def replays(path: str | Path) -> dict[tuple[str, int, int], dict[str, Any]]:
    """(task, doc_id, idx) -> the ``MoB_config`` that keeps what a log says was kept.

    Raises:
        ValueError: see ``read``; also a log without retained patches.
    """
    out = {}
    for line in read(path).values():
        for entry in retained(line):
            out[entry["task"], entry["doc_id"], entry["idx"]] = _again(entry)
    if not out:
        raise ValueError(f"{path} holds no retained patches: log them with --log-retained-patches")
    return out


def _again(entry: dict[str, Any]) -> dict[str, Any]:
    if "K" not in entry:  # pruning was off
        return {}
    one = record_of(entry)
    if one.stages or (one.layer == 0 and one.K < one.N):
        name = "document {doc_id} of {task}".format(**entry)
        where = "in several stages" if any(stage.get("layer") for stage in one.stages) else "before the decoder"
        raise ValueError(f"{name} was pruned {where} (method={one.method}): this cannot be replayed")
    if not one.K:  # there was no picture
        return {"K": 1, "l_idx": max(one.layer, 1), "method": "given"}
    cells = sum(rows * columns for picture in one.grids for rows, columns in picture)
    return {
        "K": one.K,
        "K_p": min(one.K_p, one.K),  # a radius may have stopped it before
        "k": one.k,
        "l_idx": one.layer,
        "method": "given",
        "options": {"indices": one.keep_indices, "prompt_center": one.prompt_center},
        "per_picture": False,  # the numbers run over all pictures
        "keep_newlines": cells == one.N,  # newlines had no numbers then, or there are none
    }


def differences(one: str | Path, other: str | Path) -> list[str]:
    """Where two runs differ, a line for each; [] where they are the same."""
    a, b = (_flat(read(path)) for path in (one, other))
    out = []
    for place in sorted({*a, *b}):
        left, right = a.get(place, "nothing"), b.get(place, "nothing")
        if left != right and not (left != left and right != right):
            out.append(f"{place}: {str(left)[:60]} / {str(right)[:60]}")
    return out


def _flat(value: Any, place: str = "") -> dict[str, Any]:
    """Leaves by their place, without what varies."""
    if isinstance(value, dict):
        items = [(f"{place} {'/'.join(map(str, key)) if isinstance(key, tuple) else key}", value[key]) for key in value]
        items = [(name, one) for name, one in items if name.rpartition(" ")[2] not in VARYING]
    elif isinstance(value, list):
        items = [(f"{place}[{number}]", one) for number, one in enumerate(value)] + [(f"{place} length", len(value))]
    else:
        return {place.strip(): value}
    return {name: leaf for part, one in items for name, leaf in _flat(one, part).items()}


def main(argv: list[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    if len(words) != 2 or words[0].startswith("-"):
        print(__doc__)
        return 0 if words and words[0] in ("-h", "--help") else 2
    try:
        found = differences(*words)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join([*found[:20], f"{len(found)} differences"]) if found else "the same")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
