"""The families of this package, and how many tokens a picture or a video becomes in each (see ``mob.layout``)."""

from __future__ import annotations

from typing import Any

from mob.layout import picture_of, video_of

ONEVISION, NEXT_VIDEO, VIDEO_LLAVA = "llava_onevision", "llava_next_video", "video_llava"
FAMILIES = (ONEVISION, NEXT_VIDEO, VIDEO_LLAVA)


def image_tokens(config: Any, size: tuple[int, int], alone: bool = True) -> int:
    """Tokens of one picture of (width, height) pixels, newlines included.

    ``alone``: it is the only picture of its sample. OneVision cuts only such pictures into tiles.
    """
    return picture_of(config, size[::-1], alone).length


def video_tokens(config: Any, frames: int) -> int:
    """Tokens of a video of so many frames: 196 a frame and one newline in OneVision, 144 a frame in LLaVA-NeXT-Video,
    257 in Video-LLaVA (the CLS token stays), for the towers of the published checkpoints."""
    return video_of(config, frames).length
