"""Which picture a line speaks of: names, hashes, sizes and boxes under the keys that logs use for them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

_NAMES = (
    *("image_file", "image_path", "image_name", "image", "images", "file", "file_name", "filename", "path"),
    *("video_file", "video_path", "video_name", "video", "videos", "frames", "input_media", "visual"),
)
_HASH = re.compile(r"(sha256|hash|digest)", re.IGNORECASE)
_NOT_OF_PICTURES = re.compile(r"(doc|prompt|target|task|text|weights)", re.IGNORECASE)
_HEX = re.compile(r"^(?:sha256[:-])?([0-9a-f]{8,64})$", re.IGNORECASE)
_SIZES, _BOXES = ("image_size", "image_sizes", "size", "sizes"), ("box", "boxes", "seen_box", "seen_boxes")
_LISTED = ("pictures", "images")
_LONGEST_NAME = 400


@dataclass(frozen=True)
class Reference:
    """What a log says of one picture or frame. ``size``: (width, height); ``box``: the region that the grid covers, in
    pixels of the picture."""

    name: str | None = None
    digest: str | None = None
    size: tuple[float, ...] | None = None
    box: tuple[float, ...] | None = None


def references(sources: Sequence[dict[str, Any]], pictures: int, views: int) -> list[list[Reference]]:
    """For each picture of a sample its frames: one, or as many as names were found for a single picture.

    Args:
        sources: the entry first, then what else may name a picture.
        pictures: how many pictures the record has.
        views: how many views its first picture has.
    """
    entry = sources[0]
    listed = next((entry[key] for key in _LISTED if _are_objects(entry.get(key))), None)
    if listed:
        found = [_one(picture) for picture in listed]
    else:
        names, digests = _first(sources, _names), _first(sources, _digests)
        sizes, boxes = (list(_vectors(entry, keys, length)) for keys, length in ((_SIZES, 2), (_BOXES, 4)))
        found = [Reference(*parts) for parts in zip_longest(names, digests, sizes, boxes)]
    if pictures == 1 and len(found) > 1:
        return [found[:views]]
    return [found[i : i + 1] or [Reference()] for i in range(pictures)]


def _are_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)


def _one(picture: dict[str, Any]) -> Reference:
    """What an object for one picture says."""
    names, digests = list(_names(picture)), list(_digests(picture))
    sizes, boxes = list(_vectors(picture, _SIZES, 2)), list(_vectors(picture, _BOXES, 4))
    if not sizes and "width" in picture:
        sizes = list(_vectors({"size": [picture["width"], picture.get("height")]}, _SIZES, 2))
    return Reference(*(next(iter(some), None) for some in (names, digests, sizes, boxes)))


def _first(sources: Sequence[dict[str, Any]], read: Callable[[dict[str, Any]], Iterator[str]]) -> list[str]:
    """What the first source that says anything says."""
    return next((found for source in sources if (found := list(read(source)))), [])


def _names(source: dict[str, Any]) -> Iterator[str]:
    # Frames may be named next to the file they were taken from: the first key that fits counts.
    found = (list(_texts(source[key])) for key in _NAMES if key in source)
    yield from next((some for some in found if some), [])


def _texts(value: Any) -> Iterator[str]:
    """Names in a value: a text, a list, objects with a name among their keys."""
    if isinstance(value, str):
        if value and len(value) <= _LONGEST_NAME and not value.startswith(("data:", "base64:")):
            yield value
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)
    elif isinstance(value, dict):
        yield from _texts(next((value[key] for key in _NAMES if isinstance(value.get(key), str)), None))


def _digests(source: dict[str, Any]) -> Iterator[str]:
    for key, value in source.items():
        if isinstance(key, str) and _HASH.search(key) and not _NOT_OF_PICTURES.search(key):
            for text in value if isinstance(value, list) else [value]:
                if isinstance(text, str) and (match := _HEX.match(text)):
                    yield match[1].lower()


def _vectors(source: dict[str, Any], keys: Sequence[str], length: int) -> Iterator[tuple[float, ...]]:
    """Vectors of ``length`` numbers under some keys: alone or in a list."""
    for value in (source[key] for key in keys if key in source):
        for one in value if isinstance(value, list) and value and isinstance(value[0], list) else [value]:
            if isinstance(one, list) and len(one) == length and all(isinstance(v, (int, float)) for v in one):
                width, height = one[-2] - (one[0] if length == 4 else 0), one[-1] - (one[1] if length == 4 else 0)
                if 0 < width < math.inf and 0 < height < math.inf:  # also refuses NaN
                    yield tuple(float(v) for v in one)
