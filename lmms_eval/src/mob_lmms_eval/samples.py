"""From a request of lmms-eval to what is asked: text, pictures and videos; and how to answer it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from mob.audit.writing import shown
from mob.media import load_image
from mob.picture import Box
from mob.video import probe

GENERATE, SCORE = "generate_until", "loglikelihood"
_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
_MARK = "<image>"
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")


@dataclass(frozen=True)
class Sample:
    """One request.

    Attributes:
        kind: GENERATE or SCORE.
        text: what the task asks. ``<image>`` in it says where pictures go if there are as many as pictures.
        continuation: of SCORE, the text whose likelihood is wanted.
        pictures: RGB, in their order. videos: paths.
        idx: number of the request among those of its document (choices of a question).
        names: of the pictures; None where a dataset holds the picture itself.
        padding: lmms-eval repeats a request so that processes have equally many; its answer is dropped.
    """

    kind: str
    task: str
    split: str
    doc_id: int
    idx: int
    text: str
    continuation: str | None = None
    pictures: list[Image.Image] = field(default_factory=list)
    videos: list[str] = field(default_factory=list)
    names: list[str | None] = field(default_factory=list)
    padding: bool = False

    def media(self) -> list[dict[str, Any]]:
        """What was shown: SHA-256 of a picture's RGB pixels (of a video: its file), width and height."""
        pictures = [
            {"sha256": hashlib.sha256(one.tobytes()).hexdigest(), "width": one.width, "height": one.height}
            for one in self.pictures
        ]
        return pictures + [{"sha256": _hash(path), "video": Path(path).name} for path in self.videos]

    def shown(self, seen: Callable[[tuple[int, int], bool], Box]) -> list[dict[str, Any]]:
        """The same with the names of pictures that are files, sizes of videos, and what the model saw:
        ``seen(size, is a video)``."""
        sizes = [(one.size, False) for one in self.pictures] + [(_size(path), True) for path in self.videos]
        names = [*self.names, *[None] * len(self.videos)]
        return [
            shown(size, name=name, video=one.get("video"), digest=one["sha256"], box=seen(size, video))
            for (size, video), name, one in zip(sizes, names, self.media(), strict=True)
        ]

    def key(self, generation: Mapping[str, Any], settings: str) -> str:
        """Names this question to this model; equal keys have equal answers."""
        parts = [self.kind, self.task, self.split, self.doc_id, self.idx, self.text, self.continuation, self.media()]
        text = json.dumps([*parts, dict(generation), settings], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()


def read(request: Any, dataset: Mapping[str, Any]) -> Sample:
    """The sample of a request; ``dataset`` is ``lm.task_dict``.

    Raises:
        ValueError: a picture cannot be read, or the task shows something that is neither picture nor video.
    """
    metadata = request.metadata or {}
    common = {
        "kind": request.request_type,
        "task": request.task_name,
        "doc_id": request.doc_id,
        "idx": request.idx,
        "padding": bool(metadata.get("__padding_only__")),
    }
    if len(request.args) == 2:  # a choice on its own, for mutual information
        return Sample(**common, split="", text=request.args[0], continuation=request.args[1])
    text, second, to_visual, doc_id, task, split = request.args
    doc = dataset[task][split][doc_id]
    continuation = None
    if request.request_type == SCORE:
        continuation = str(second(doc)) if callable(second) else second
    pictures, names, videos = _visuals(to_visual, doc)
    given = {"pictures": pictures, "names": names, "videos": videos}
    return Sample(**common, split=split, text=text, continuation=continuation, **given)


def placed(text: str, pictures: int, mark: str) -> str:
    """The text with ``mark`` where pictures go; without any, they go in front.

    A text with another number of ``<image>`` than pictures is talking about something else: these are taken out.
    """
    found = text.count(_MARK)
    return text.replace(_MARK, mark if found == pictures else "").replace("<video>", "")


def generation(given: Mapping[str, Any], default_length: int) -> tuple[dict[str, Any], list[str]]:
    """Keywords of ``generate`` for the generation_kwargs of a task, and the texts at which an answer is cut.

    Greedy unless a temperature above 0 (or do_sample without a temperature) asks for sampling.
    """
    temperature = given.get("temperature")
    sample = bool(given.get("do_sample")) if temperature is None else temperature > 0
    options: dict[str, Any] = {
        "max_new_tokens": int(given.get("max_new_tokens") or default_length),
        "num_beams": int(given.get("num_beams") or 1),
        "do_sample": sample,
    }
    # None: a checkpoint's own settings of sampling would draw warnings from greedy search.
    names = ("temperature", "top_p", "top_k")
    options |= {name: given.get(name) if sample else None for name in names if not sample or given.get(name)}
    until = given.get("until") or []
    return options, [until] if isinstance(until, str) else [stop for stop in until if stop]


def cut(text: str, until: list[str]) -> str:
    """The text up to the first of ``until``, without blanks around it and control characters, which no Excel file may
    hold and MMBench writes one."""
    text = _CONTROL.sub("", text).strip()
    ends = [at for at in (text.find(stop) for stop in until) if at >= 0]
    return text[: min(ends, default=len(text))].strip()


def _visuals(to_visual: Any, doc: Any) -> tuple[list[Image.Image], list[str | None], list[str]]:
    """(pictures, their names, videos) of a document."""
    pictures, names, videos = [], [], []
    for one in (to_visual(doc) if to_visual else None) or ():
        if isinstance(one, Image.Image):
            pictures.append(one.convert("RGB"))
            names.append(Path(one.filename).name if getattr(one, "filename", "") else None)
        elif isinstance(one, str) and one.lower().endswith(_PICTURES):
            pictures.append(load_image(one))
            names.append(Path(one).name)
        elif isinstance(one, str):
            videos.append(one)
        else:
            raise ValueError(f"the task shows a {type(one).__name__}: these models look at pictures and videos only")
    return pictures, names, videos


@lru_cache(maxsize=4096)
def _size(path: str) -> tuple[int, int]:
    clip = probe(path)
    return clip.width, clip.height


@lru_cache(maxsize=4096)
def _hash(path: str) -> str | None:
    try:
        with open(path, "rb") as file:
            digest = hashlib.sha256()
            while block := file.read(2**20):
                digest.update(block)
            return digest.hexdigest()
    except OSError:
        return None  # whoever reads it will say so
