"""One self-contained page: data, code, styles and pictures in a single file that asks nobody for anything.

Nothing that a data set says becomes markup: texts lie in a JSON block whose ``<``, ``>`` and ``&`` are escaped, the
page's code puts them on the screen as text, and a Content-Security-Policy allows just the script and the style with
the hashes of ours, pictures from ``data:`` and no connection at all.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import Any

from mob.audit.pictures import Album, Progress, Shot
from mob.audit.reading import Reading, Sample
from mob.picture import PROMPT_COLOUR, VISUAL_COLOUR
from mob.record import RetainedPatches

SEEN = ("whole", "pad", "crop")
_SCRIPTS = ("data.js", "draw.js", "plots.js", "app.js")
_MOST_RULES = 12
_VISUAL, _PROMPT = 1, 2  # 0: dropped


def write_page(
    reading: Reading, album: Album, target: Path, *, title: str, seen: str = "whole", progress: Progress | None = None
) -> int:
    """Write the report; returns its bytes. The file appears once it is whole.

    Args:
        seen: what the model saw of pictures whose box the log does not say (see ``SEEN``).

    Raises:
        ValueError: the file cannot be written.
    """
    part = target.with_name(f".{target.name}.part")
    try:
        with tempfile.TemporaryFile("w+", encoding="ascii") as pictures:
            wanted = [
                [(frames, _views(sample, at)) for at, frames in enumerate(sample.media)] for sample in reading.samples
            ]
            shots = album.fill(wanted, pictures, progress)
            data = _data(reading, shots, album, seen)
            head, tail = _markup(title, data)
            with part.open("w", encoding="utf-8", errors="replace", newline="\n") as page:
                page.write(head)
                pictures.seek(0)
                shutil.copyfileobj(pictures, page)
                page.write(tail)
        os.replace(part, target)
        return target.stat().st_size
    except OSError as error:
        raise ValueError(f"cannot write {target}: {error.strerror or error}; choose another --html") from None
    finally:
        part.unlink(missing_ok=True)


def json_block(value: Any) -> str:
    """JSON that may stand inside a script tag: no character in it can end the tag or begin a comment."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))  # ASCII, so lone surrogates are safe too
    return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")


def _markup(title: str, data: dict[str, Any]) -> list[str]:
    """The page before its pictures, and after them."""
    here = files("mob.audit")
    style = (here / "page.css").read_text("utf-8")
    style = style.replace("%%PROMPT%%", _css(PROMPT_COLOUR)).replace("%%VISUAL%%", _css(VISUAL_COLOUR))
    script = "\n".join((here / name).read_text("utf-8") for name in _SCRIPTS)
    policy = (
        f"default-src 'none'; img-src data:; style-src {_source(style)}; script-src {_source(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    parts = {
        "POLICY": policy,
        "TITLE": html.escape(title),
        "STYLE": style,
        "DATA": json_block(data),
        "SCRIPT": script,
    }
    halves = (here / "page.html").read_text("utf-8").split("%%PICTURES%%")
    # In one go: what is put in is not looked through again, so a data set may say %%DATA%%.
    return [re.sub("%%([A-Z]+)%%", lambda mark: parts[mark[1]], half) for half in halves]


def _css(colour: tuple[int, int, int]) -> str:
    return "rgb({} {} {})".format(*colour)


def _source(text: str) -> str:
    """How a Content-Security-Policy names an inline script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


# ---------------------------------------------------------------------------------------------------------------
# The data of the page


def _data(reading: Reading, shots: list[list[list[Shot]]], album: Album, seen: str) -> dict[str, Any]:
    samples = reading.samples
    tasks = list(dict.fromkeys(sample.task for sample in samples))
    rules = _rules(samples)
    names = list(dict.fromkeys(rules))
    return {
        "tasks": tasks,
        "rules": names,
        "seen": seen,
        "about": _about(reading, album),
        "trouble": dict(album.trouble) if album.root else {},
        "samples": [
            {
                "id": sample.name,
                "task": tasks.index(sample.task),
                "rule": names.index(rule),
                "source": sample.source,
                "question": sample.question,
                "answer": sample.answer,
                "targets": sample.targets,
                "right": sample.right,
                "why": sample.why,
                "pictures": list(_pictures(sample, found)),
                "records": [_record(*both) for both in zip(sample.records, sample.mean_tokens, strict=True)],
            }
            for sample, found, rule in zip(samples, shots, rules, strict=True)
        ],
    }


def _about(reading: Reading, album: Album) -> dict[str, Any]:
    try:
        release = version("mob")
    except PackageNotFoundError:
        release = ""
    return {
        "files": reading.files,
        "without": reading.without_entry,
        "images": bool(album.root),
        "side": album.side,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "version": release,
    }


def _rules(samples: Sequence[Sample]) -> list[str]:
    """What each sample was pruned with, in words; without K where that would make too many."""
    firsts = [sample.records[0] for sample in samples]
    out = [f"{record.method}, layer {record.layer}, K = {record.K}" for record in firsts]
    return out if len(set(out)) <= _MOST_RULES else [f"{record.method}, layer {record.layer}" for record in firsts]


def _views(sample: Sample, picture: int) -> int:
    """How many views of a picture have a grid."""
    grids = next((record.grids for record in sample.records if picture < len(record.grids)), [])
    return max(1, sum(rows * columns > 0 for rows, columns in grids[picture])) if grids else 1


def _pictures(sample: Sample, found: list[list[Shot]]) -> Iterator[dict[str, Any]]:
    for frames, shots in zip(sample.media, found, strict=True):
        first = frames[0]
        size = (shots[0].width, shots[0].height) if shots else first.size
        one: dict[str, Any] = {"name": (first.name or first.digest or "")[-200:], "shots": [s.number for s in shots]}
        if size:
            one["size"] = [round(side) for side in size]
        if size and first.box:
            one["box"] = [round(v / size[i % 2], 5) for i, v in enumerate(first.box)]
        yield one


def _record(record: RetainedPatches, mean: float | None) -> dict[str, Any]:
    cells, loose = _cells(record)
    values = {name: getattr(record, name) for name in ("N", "K", "K_p", "k", "layer", "method", "grids", "stages")}
    measured = {name: getattr(record, name) for name in ("eta", "eps_p", "eps_v", "milliseconds")} | {"mean": mean}
    values |= {name: float(f"{value:.5g}") for name, value in measured.items() if value is not None}
    return values | {"cells": cells, "loose": loose, "prompt": sum(record.prompt_center)}


def _cells(record: RetainedPatches) -> tuple[str, int]:
    """Two bits for every cell of all grids in order (dropped, visual centre, prompt centre), base64; and how many kept
    tokens have no cell: newlines, and those of unknown layouts."""
    starts, total = {}, 0
    for picture, views in enumerate(record.grids):
        for view, (rows, columns) in enumerate(views):
            starts[picture, view] = total, rows, columns
            total += rows * columns
    packed, loose = bytearray((total + 3) // 4), 0
    kept = zip(record.image, record.view, record.row, record.column, record.prompt_center, strict=True)
    for picture, view, row, column, prompt in kept:
        start, rows, columns = starts.get((picture, view), (0, 0, 0))
        if not (0 <= row < rows and 0 <= column < columns):
            loose += 1
            continue
        at = start + row * columns + column
        packed[at // 4] |= (_PROMPT if prompt else _VISUAL) << at % 4 * 2
    return base64.b64encode(packed).decode(), loose
