"""What a call says about the grids of its pictures: one reader for every way in which model families say it.

Views are (rows, columns, ends rows with newlines, tokens without a place before them), as ``mob.layout.View`` takes
them; a picture is a list of views. The LLaVA families that cut pictures into tiles are in ``mob/layout.py``.
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from typing import Any

from torch import Tensor

IMAGE, VIDEO = 1, 2  # as in mob/layout.py
View = tuple[int, int, bool, int]


def described(config: Any, kwargs: dict[str, Any]) -> dict[int, list[list[View]]]:
    """Pictures and videos of the keyword arguments of a model (or of its encoder), in order, by kind."""
    out = {kind: grid_thw(config, kwargs, kind) for kind in (IMAGE, VIDEO)}
    if kwargs.get("image_sizes") is not None and not getattr(config, "image_grid_pinpoints", None):
        out[IMAGE] = sizes(config, kwargs["image_sizes"])
    if isinstance(kwargs.get("image_grids"), Tensor):  # Molmo 2: a small view and a large one
        out[IMAGE] = [
            [(*view, False, 0) for view in (row[:2], row[2:]) if all(view)] for row in rows_of(kwargs["image_grids"])
        ]
    return {kind: pictures for kind, pictures in out.items() if pictures}


def grid_thw(config: Any, kwargs: dict[str, Any], kind: int) -> list[list[View]]:
    """Grids (frames, rows, columns) of patches, before neighbours are merged: the Qwen families and many others."""
    name = "image" if kind == IMAGE else "video"
    if not isinstance(kwargs.get(f"{name}_grid_thw"), Tensor):
        return []
    grids = rows_of(kwargs[f"{name}_grid_thw"])
    merges = [merge(config)] * len(grids)
    if isinstance(kwargs.get(f"{name}_merge_sizes"), Tensor):  # VideoLLaMA 3: each its own
        merges = kwargs[f"{name}_merge_sizes"].tolist()
    if family(config) == "hunyuan_vl":  # a token before and after, rows end with newlines
        return [[(h // m, w // m, True, 1), (0, 0, False, 1)] for (_, h, w), m in zip(grids, merges, strict=True)]
    together = getattr(config.vision_config, "temporal_merge_size", 1) if kind == VIDEO else 1
    return [[(h // m, w // m, False, 0)] * (t // together) for (t, h, w), m in zip(grids, merges, strict=True)]


def sizes(config: Any, image_sizes: Any) -> list[list[View]]:
    """Sizes (height, width) in pixels: Pixtral towers, whose rows of tokens are ended by a text token, and Emu3."""
    vision, vq = getattr(config, "vision_config", None), getattr(config, "vq_config", None)
    patch = getattr(vision, "patch_size", None)
    if family(config) == "emu3":
        side, newline = 2 ** (len(vq.channel_multiplier) - 1), True
    elif getattr(vision, "model_type", None) == "pixtral" and isinstance(patch, int):
        side, newline = patch * (getattr(config, "spatial_merge_size", None) or 1), False
    else:
        return []
    return [[(height // side, width // side, newline, 0)] for height, width in rows_of(image_sizes)]


def family(config: Any) -> str:
    return getattr(config, "model_type", None) or ""


def merge(config: Any) -> int:
    """Patches along one side that become one token."""
    vision = config.vision_config
    kernel = getattr(vision, "merge_kernel_size", None)
    return kernel[0] if kernel else getattr(vision, "spatial_merge_size", 1)


def shrunk(config: Any, side: int) -> int:
    """Tokens along one side of a view whose tower has ``side`` patches there: what its projector makes of them."""
    vision = config.vision_config
    for part, name in ((config, "scale_factor"), (vision, "scale_factor"), (vision, "hidden_stride")):
        if isinstance(getattr(part, name, None), int):
            return side // getattr(part, name)
    for name in ("downsample_ratio", "downsample_rate"):  # 0.5 (InternVL), "1/4" (Granite 4 Vision)
        if isinstance(getattr(config, name, None), (float, str)):
            return int(side * Fraction(str(getattr(config, name))))
    return side


def rows_of(values: Tensor | Iterable[Any]) -> list[list[int]]:
    """A table of integers, one row per picture."""
    rows = values.tolist() if isinstance(values, Tensor) else values
    return [[int(one) for one in row] for row in rows]
