"""Logs for the tests of the audit, and a reader of its pages."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

from PIL import Image

from mob.audit.__main__ import main
from mob.record import RetainedPatches

RECORD = RetainedPatches(
    keep_indices=[1, 6, 17],
    prompt_center=[True, False, True],
    image=[0, 0, 0],
    view=[0, 0, 1],
    row=[0, 1, 0],
    column=[1, 2, 1],
    grids=[[[4, 4], [2, 3]]],
    N=22,
    K=3,
    K_p=2,
    layer=2,
    eta=0.75,
    eps_p=0.5,
    eps_v=0.75,
    milliseconds=1.5,
)
HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<!--<script>",
    "%%DATA%% %%PICTURES%% %%SCRIPT%%",
    "\u202ereversed \u2028 \x00 \ud800",
    "]]>&lt;b&gt;",
)


def lmms(entry=None, **more):
    """A line as lmms-eval writes it."""
    entry = RECORD.to_dict() | (entry or {})
    line = {"doc_id": 7, "input": "what?", "target": "A", "filtered_resps": ["A"], "doc_hash": "a" * 64}
    return line | {"token_counts": [{"input_tokens": 9, "retained_patches": entry}]} | more


def write(path: Path, *rows) -> Path:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


def picture(path: Path, size=(64, 48), colour="red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def report(tmp_path: Path, *rows, options=("--no-pictures",)) -> str:
    target = tmp_path / "report.html"
    log = write(tmp_path / "log_samples_toy.jsonl", *rows)
    assert main([str(log), "--html", str(target), "--quiet", *map(str, options)]) == 0
    return target.read_text()


class Page(HTMLParser):
    """Tags, attributes and the text of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.texts: list[tuple[str, dict, str]] = []
        self._open = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._open = [tag, dict(attrs), ""]

    def handle_data(self, data):
        if self._open:
            self._open[2] += data

    def handle_endtag(self, tag):
        if self._open and self._open[0] == tag:
            self.texts.append(tuple(self._open))
            self._open = None

    @property
    def data(self) -> dict:
        return json.loads(next(text for _, attrs, text in self.texts if attrs.get("id") == "data"))

    @property
    def pictures(self) -> list[Image.Image]:
        found = [text for _, attrs, text in self.texts if re.fullmatch(r"p\d+", attrs.get("id", ""))]
        return [Image.open(BytesIO(base64.b64decode(text.partition("base64,")[2]))) for text in found]
