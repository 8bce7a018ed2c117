"""Patches, what a vision tower takes, and how the frames of a video become them (torch alone, no torchvision)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from Qwen2VL_MoB.vision import FRAME_TOKENS, Clip, check_ratio

CLIP = {"image_mean": (0.48145466, 0.4578275, 0.40821073), "image_std": (0.26862954, 0.26130258, 0.27577711)}


@dataclass(frozen=True, eq=False)
class Patches:
    """One picture or video, ready for the vision tower.

    Attributes:
        pixels: float32 (t * h * w, 3 * temporal patch * patch * patch), normalised, grouped by merged token.
        grid: (t, h, w) in patches.
        seconds: of a video, when each of its t groups of frames was shown; empty for pictures.
        interval: of a video, seconds from one group of frames to the next.
    """

    pixels: Tensor
    grid: tuple[int, int, int]
    seconds: tuple[float, ...] = ()
    interval: float = 1.0


@dataclass(frozen=True)
class VideoSettings:
    """What the stock video processors of the family do to frames.

    ``min_pixels`` and ``max_pixels`` bound one frame, or, with ``volume`` (Qwen3-VL), all frames together. ``cap``
    bounds them further by ``max_tokens``, as ``cap_pixels_per_frame`` of transformers 5.23 does.
    """

    patch: int = 14
    temporal: int = 2
    merge: int = 2
    min_pixels: int = 128 * 28 * 28
    max_pixels: int = 768 * 28 * 28
    mean: tuple[float, ...] = CLIP["image_mean"]
    std: tuple[float, ...] = CLIP["image_std"]
    scale: float = 1 / 255
    volume: bool = False
    cap: bool = False
    max_tokens: int = 128_000

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], family: str) -> VideoSettings:
        """From the contents of a checkpoint's file, all keys present; ``family`` is the model_type."""
        volume = family.startswith("qwen3")
        return cls(
            patch=values["patch_size"],
            temporal=values["temporal_patch_size"],
            merge=values["merge_size"],
            min_pixels=values["size"]["shortest_edge"],
            max_pixels=values["size"]["longest_edge"],
            mean=tuple(values["image_mean"]),
            std=tuple(values["image_std"]),
            scale=values.get("rescale_factor", 1 / 255),
            volume=volume,
            cap=bool(values.get("cap_pixels_per_frame")),
            max_tokens=values.get("max_video_tokens", 768 if volume else 128_000),
        )

    def budget(self, count: int) -> tuple[float, float]:
        """Least and most pixels of each of ``count`` frames: Qwen's recipe, within what this checkpoint allows."""
        low, high = (bound / count if self.volume else bound for bound in (self.min_pixels, self.max_pixels))
        least, most = (tokens * (self.patch * self.merge) ** 2 for tokens in FRAME_TOKENS)
        return min(max(least, low), high), min(max(most, low), high)

    def size(self, count: int, height: int, width: int) -> tuple[int, int]:
        """(height, width) that ``count`` frames of this size are resized to."""
        factor, most = self.patch * self.merge, self.max_pixels
        if self.volume:
            if self.cap:
                frame = max(min(self.max_tokens * factor**2, most // count), int(self.min_pixels * 1.05))
                most = frame * count
            return _volume_size(count, height, width, self.temporal, factor, self.min_pixels, most)
        if self.cap:
            share = int(self.max_tokens * factor**2 * 0.9) * self.temporal // count
            most = max(min(most, share), int(self.min_pixels * 1.05))
        return smart_resize(height, width, factor, self.min_pixels, most)

    def patches(self, frames: Tensor, resize: bool = True) -> tuple[Tensor, tuple[int, int, int]]:
        """(T, 3, H, W) with levels 0..255 -> patches and grid; the last frame repeats to fill its group.

        Without ``resize`` the sides must be multiples of ``patch * merge`` already.
        """
        check_ratio(*frames.shape[-2:])
        size = self.size(len(frames), *frames.shape[-2:]) if resize else tuple(frames.shape[-2:])
        if tuple(frames.shape[-2:]) != size:  # uint8 stays uint8, as in torchvision
            frames = torch.nn.functional.interpolate(frames, size, mode="bicubic", antialias=True)
        mean, std = (torch.tensor(values)[:, None, None] / self.scale for values in (self.mean, self.std))
        frames = (frames.float() - mean) / std
        if missing := -len(frames) % self.temporal:
            frames = torch.cat([frames, frames[-1:].expand(missing, -1, -1, -1)])
        t, h, w = len(frames) // self.temporal, size[0] // self.patch, size[1] // self.patch
        inner = (self.merge, self.patch)
        # Axes: group, frame in it, colour, then rows and columns as (merged token, patch in it, pixel in it).
        split = frames.reshape(t, self.temporal, 3, h // self.merge, *inner, w // self.merge, *inner)
        return split.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(t * h * w, -1), (t, h, w)


def _volume_size(
    count: int, height: int, width: int, temporal: int, factor: int, least: int, most: int
) -> tuple[int, int]:
    """Qwen3-VL's rule: the budget counts the pixels of all frames. Sides below ``factor`` grow first."""
    if min(height, width) < factor:
        grow = max(factor / height, factor / width)
        height, width = int(height * grow), int(width * grow)
    rows, columns = (round(side / factor) * factor for side in (height, width))
    pixels = round(count / temporal) * temporal * rows * columns
    if pixels > most:
        shrink = math.sqrt(count * height * width / most)
        rows, columns = (max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width))
    elif pixels < least:
        grow = math.sqrt(least / (count * height * width))
        rows, columns = (math.ceil(side * grow / factor) * factor for side in (height, width))
    return rows, columns


def group_seconds(clip: Clip, temporal: int) -> tuple[float, ...]:
    """When each group of ``temporal`` frames was shown: the middle between its first and last frame."""
    indices = clip.indices + clip.indices[-1:] * (-len(clip.indices) % temporal)
    groups = [indices[i : i + temporal] for i in range(0, len(indices), temporal)]
    return tuple((group[0] / clip.fps + group[-1] / clip.fps) / 2 for group in groups)
