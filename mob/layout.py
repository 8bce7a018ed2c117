"""How the visual tokens of a picture or video are laid out: grids, newlines, frames; per model family.

With ``mob/spans.py`` the only file of ``mob`` that knows families. Lengths are exact where the model says how large its
pictures are (sizes, grids, encoded features), and guessed from runs of placeholders where it does not.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor

from mob import grids

IMAGE, VIDEO = 1, 2  # what a placeholder stands for; 0 is text
NOTE = "mob_picture"
ENCODERS = {"get_image_features": IMAGE, "get_video_features": VIDEO}


class Cell(NamedTuple):
    """Which picture of the sample a visual token shows, and where: view (tile level or frame), row, column.

    A newline token has its row and column -1; where there is no grid (CLS tokens, unknown layouts) both are -1.
    """

    image: int
    view: int
    row: int
    column: int


@dataclass(frozen=True)
class View:
    """``head`` tokens without a place, then ``rows`` of ``columns``, each row ended by a newline or not."""

    rows: int
    columns: int
    newline: bool = False
    head: int = 0

    @property
    def length(self) -> int:
        return self.head + self.rows * (self.columns + self.newline)


NEWLINE = View(1, 0, newline=True)


@dataclass(frozen=True)
class Picture:
    """One picture (its views: whole, then tiles) or one video (its frames), in the order of its tokens."""

    views: tuple[View, ...]

    @property
    def length(self) -> int:
        return sum(view.length for view in self.views)

    @property
    def grids(self) -> list[list[int]]:
        """[rows, columns] of every view."""
        return [[view.rows, view.columns] for view in self.views]

    def without_newlines(self) -> Picture:
        return Picture(tuple(replace(view, newline=False) for view in self.views))

    def cells(self, number: int) -> list[Cell]:
        """The place of every token; ``number`` counts pictures within a sample."""
        out = []
        for index, view in enumerate(self.views):
            out += [Cell(number, index, -1, -1)] * view.head
            for row in range(view.rows):
                out += [Cell(number, index, row, column) for column in range(view.columns)]
                out += [Cell(number, index, row, -1)] * view.newline
        return out


@dataclass(frozen=True)
class Kept:
    """What stages before the decoder have left of a picture: stands where the picture stood.

    ``of``: all pictures of the sample as they were; ``number``: which of them; ``indices``: which of its tokens are
    left, ascending; ``stages``: what those stages were, for the records.
    """

    of: tuple[Picture, ...]
    number: int
    indices: tuple[int, ...]
    stages: tuple[tuple, ...] = ()

    @property
    def length(self) -> int:
        return len(self.indices)

    def cells(self, number: int) -> list[Cell]:
        whole = self.of[self.number].cells(self.number)
        return [whole[i] for i in self.indices]

    def without_newlines(self) -> Kept:
        whole = self.of[self.number].cells(self.number)
        return replace(self, indices=tuple(i for i in self.indices if not whole[i].row >= 0 > whole[i].column))


class Origin(NamedTuple):
    """A sample's visual tokens before any stage: number and cell of those that reached the decoder, grids of every
    picture, how many tokens there were, and the stages that have taken some away."""

    numbers: list[int]
    cells: list[Cell]
    grids: list[list[list[int]]]
    N: int
    stages: list[dict]


def origin(pictures: Sequence[Picture | Kept]) -> Origin:
    """Where the tokens of a sample come from."""
    if not any(isinstance(picture, Kept) for picture in pictures):
        cells = [cell for number, picture in enumerate(pictures) for cell in picture.cells(number)]
        return Origin(list(range(len(cells))), cells, [picture.grids for picture in pictures], len(cells), [])
    of = pictures[0].of
    starts = [sum(picture.length for picture in of[:number]) for number in range(len(of))]
    numbers = [starts[picture.number] + i for picture in pictures for i in picture.indices]
    cells = [cell for picture in pictures for cell in picture.cells(picture.number)]
    stages = [dict(stage) for stage in pictures[0].stages]
    return Origin(numbers, cells, [picture.grids for picture in of], sum(picture.length for picture in of), stages)


def unknown(length: int) -> Picture:
    """Tokens without places."""
    return Picture((View(0, 0, head=length),))


# ---------------------------------------------------------------------------------------------------------------
# What a call says about its pictures


def declared(config: Any, kwargs: dict[str, Any]) -> dict[int, list[Picture]]:
    """Pictures and videos that the keyword arguments of a model (or of its encoder) describe, in order, by kind."""
    described = grids.described(config, kwargs).items()
    out = {kind: [Picture(tuple(View(*view) for view in views)) for views in found] for kind, found in described}
    sizes = kwargs.get("image_sizes")
    if sizes is not None and getattr(config, "image_grid_pinpoints", None):
        counts = kwargs.get("batch_num_images")
        tiled = [True] * len(sizes) if counts is None else [int(n) == 1 for n in counts for _ in range(int(n))]
        pairs = grids.rows_of(sizes)
        out[IMAGE] = [tiles(config, *size) if cut else one_view(config) for size, cut in zip(pairs, tiled, strict=True)]
    encoded = kwargs.get("mm_encoder_outputs") or {}
    for kind, name in ((IMAGE, "image"), (VIDEO, "video")):
        pictures = [getattr(one, NOTE, None) for one in picture_features(encoded.get(name))]
        if pictures and None not in pictures:
            out[kind] = pictures
    return out


def picture_of(config: Any, size: tuple[int, int] | None, alone: bool = True) -> Picture:
    """The tokens of one picture of the LLaVA families.

    Args:
        size: (height, width) in pixels; not needed where pictures are not cut into tiles.
        alone: the only picture of its sample; OneVision cuts no others into tiles.

    Raises:
        ValueError: the size is needed and missing.
    """
    if not getattr(config, "image_grid_pinpoints", None):
        return Picture((_whole(config),))
    if config.model_type == "llava_onevision" and not alone:
        return one_view(config)
    if size is None:
        raise ValueError("image_sizes is needed: the (width, height) of each picture before it was processed")
    return tiles(config, *size)


def video_of(config: Any, frames: int) -> Picture:
    """The tokens of a video of so many frames, in the LLaVA families."""
    frame, tail = _frame(config, grid_side(config))
    return Picture((frame,) * frames + tail)


def tiles(config: Any, height: int, width: int) -> Picture:
    """A LLaVA-NeXT or OneVision picture: the whole as one square view, then its tiles without their padding."""
    side = grid_side(config)
    rows, columns = tile_grid(config, height, width)
    limit = _most_tiles(config)
    if limit:  # OneVision shrinks what would be more than nine tiles; the same numbers as its interpolation
        ratio = math.sqrt(rows * columns / (limit * side**2))
        if ratio > 1.1:
            rows, columns = int(rows // ratio), int(columns // ratio)
    return Picture((View(side, side), View(rows, columns, newline=True)))


def tile_grid(config: Any, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of tokens over all tiles of a picture, padding cut away."""
    from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

    side = grid_side(config)
    pinpoints = [list(size) for size in config.image_grid_pinpoints]
    down, across = get_anyres_image_grid_shape((height, width), pinpoints, config.vision_config.image_size)
    rows, columns = down * side, across * side
    # The original truncates where transformers first rounds to seven digits: 27.999999999 is 27 there and 28 here.
    whole = int if truncates(config) else lambda value: int(round(value, 7))
    if width / height > columns / rows:
        return rows - 2 * ((rows - whole(height * (columns / width))) // 2), columns
    return rows, columns - 2 * ((columns - whole(width * (rows / height))) // 2)


def truncates(config: Any) -> bool:
    """Whether padding is cut by the rule of the original repository, whose configs name their way of merging tiles."""
    return getattr(config, "mm_patch_merge_type", None) == "spatial_unpad"


def one_view(config: Any) -> Picture:
    """A OneVision picture among several: one view and a newline."""
    return Picture((View(grid_side(config), grid_side(config)), NEWLINE))


def _most_tiles(config: Any) -> int | None:
    aspect = getattr(config, "vision_aspect_ratio", None) or ""
    return int(aspect.removeprefix("anyres_max_")) if aspect.startswith("anyres_max_") else None


def picture_features(output: Any) -> Sequence[Tensor]:
    """The features of each picture, where an encoder gives them one by one."""
    features = getattr(output, "pooler_output", None)
    if features is None and getattr(output, "deepstack_features", None):
        features = output.deepstack_features[0][1]  # Granite 4 Vision: pairs of a layer and its features
    return features if isinstance(features, (list, tuple)) else ()


# ---------------------------------------------------------------------------------------------------------------
# What runs of placeholders look like


def guess(config: Any, kind: int, length: int) -> list[Picture]:
    """The picture, or pictures, that a run of ``length`` placeholders of one kind probably is."""
    side = grid_side(config)
    if side and kind == VIDEO:
        frame, tail = _frame(config, side)
        count, rest = divmod(length - sum(view.length for view in tail), frame.length)
        return [Picture((frame,) * count + tail)] if count > 0 and not rest else [unknown(length)]
    for view in sorted((_whole(config), _square(config)), key=lambda view: view.length):
        if view.length and length % view.length == 0:
            return [Picture((view,))] * (length // view.length)
    return [unknown(length)]


def _frame(config: Any, side: int) -> tuple[View, tuple[View, ...]]:
    """One frame of a video, and what follows the last one."""
    kind = getattr(config, "model_type", None)
    if kind == "video_llava":
        return View(side, side, head=1), ()
    if kind == "llava_next_video":
        pooled = side // getattr(config, "spatial_pool_stride", 2)
        return View(pooled, pooled), ()
    if kind == "llava_onevision":
        return View(math.ceil(side / 2), math.ceil(side / 2)), (NEWLINE,)
    return View(side, side), ()


def _whole(config: Any) -> View:
    """The grid of the tower for a picture that is not cut, with its CLS token where that is not dropped."""
    side = grid_side(config) or 0
    full = getattr(config, "vision_feature_select_strategy", None) == "full"
    return View(side, side, head=int(full and "siglip" not in getattr(config.vision_config, "model_type", "")))


def _square(config: Any) -> View:
    """The grid of models that say only how many tokens they make of a picture (GOT-OCR 2)."""
    length = getattr(config, "image_seq_length", None)
    side = math.isqrt(length) if isinstance(length, int) and length > 0 else 0
    return View(side, side) if side**2 == length else View(0, 0)


def grid_side(config: Any) -> int | None:
    """Side of the square grid of tokens that the tower and projector make of one view, where the config fixes it."""
    vision = getattr(config, "vision_config", None)
    size, patch = getattr(vision, "image_size", None), getattr(vision, "patch_size", None)
    size, patch = (v[0] if isinstance(v, (list, tuple)) else v for v in (size, patch))
    if not isinstance(size, int) or not isinstance(patch, int):
        return None
    return grids.shrunk(config, size // patch)


# ---------------------------------------------------------------------------------------------------------------
# Pictures of a batch


def arrange(config: Any, kinds: Sequence[Sequence[int]], given: dict[int, list[Picture]]) -> list[list[Picture]]:
    """The pictures of every sample, in the order of their tokens.

    Args:
        kinds: per sample, what each of its tokens is (0, IMAGE or VIDEO).
        given: what ``declared`` found, for the whole batch.

    Declared pictures are used where they fill the placeholders of every sample exactly; a later turn may declare
    earlier ones again, then the last count. Otherwise runs of placeholders are guessed.
    """
    if set(given) == {VIDEO} and not any(VIDEO in row for row in kinds):
        given = {IMAGE: given[VIDEO]}  # GLM-4V writes the frames of videos with the placeholder of pictures
    runs = [_runs(row) for row in kinds]
    found = _deal(config, runs, given) if given else None
    if found is None and given and len(kinds) == 1:
        last = {kind: _last(pictures, kinds[0].count(kind)) for kind, pictures in given.items()}
        found = _deal(config, runs, last)
    return found or [_guessed(config, row) for row in kinds]


def _guessed(config: Any, row: Sequence[int]) -> list[Picture]:
    """Guesses for every run of placeholders; equal runs with one token between them are the rows of one picture (Fuyu,
    Pixtral) where they are nothing else."""
    pictures, groups, position, end = [], [], 0, -1
    for kind, run in itertools.groupby(row):
        length = len(list(run))
        if kind and groups and groups[-1][:2] == [kind, length] and position == end + 1:
            groups[-1][2] += 1
        elif kind:
            groups.append([kind, length, 1])
        position += length
        end = position if kind else end
    for kind, length, count in groups:
        guesses = guess(config, kind, length)
        rows = count > 1 and guesses == [unknown(length)]
        pictures += [Picture((View(count, length),))] if rows else guesses * count
    return pictures


def _deal(
    config: Any, runs: list[list[tuple[int, int]]], given: dict[int, list[Picture]]
) -> list[list[Picture]] | None:
    """Declared pictures dealt out to the samples, guesses for kinds that are not declared; None where they do not fit.

    A picture may lie on several runs: Qwen3-VL writes the time before every frame of a video.
    """
    queues = {kind: iter(pictures) for kind, pictures in given.items()}
    out = []
    for row in runs:
        pictures: list[Picture] = []
        missing = dict.fromkeys(queues, 0)  # tokens that the current picture of a kind still needs
        for kind, length in row:
            if kind not in queues:
                pictures += guess(config, kind, length)
                continue
            missing[kind] -= length
            while missing[kind] < 0:
                picture = next(queues[kind], None)
                if picture is None:
                    return None
                pictures.append(picture)
                missing[kind] += picture.length
        if any(missing.values()):
            return None
        out.append(pictures)
    return None if any(next(queue, None) for queue in queues.values()) else out


def _last(pictures: list[Picture], length: int) -> list[Picture]:
    """The last pictures that have ``length`` tokens together."""
    start = len(pictures)
    while start and length > 0:
        start -= 1
        length -= pictures[start].length
    return pictures[start:]


def _runs(row: Sequence[int]) -> list[tuple[int, int]]:
    """(kind, length) of each run of consecutive placeholders of one kind."""
    return [(kind, len(list(run))) for kind, run in itertools.groupby(row) if kind]
