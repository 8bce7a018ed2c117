"""Pictures and videos as a Qwen takes them: normalised patches and their grid, without torchvision.

Pictures go through the stock ``Qwen2VLImageProcessorPil``, with the settings of the checkpoint. The stock video
processors need torchvision; ``patches.VideoSettings`` computes what they do, on torch alone.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.utils import cached_file

from Qwen2VL_MoB.patches import CLIP, Patches, VideoSettings, group_seconds
from Qwen2VL_MoB.pictures import is_array, is_single, to_picture, to_pictures
from Qwen2VL_MoB.vision import FPS, Clip, check_ratio, fit_clip, open_clip

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".flv", ".wmv", ".ts", ".3gp")
_HALF = {"image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)}
_IMAGE_KEYS = """
    do_resize resample do_rescale rescale_factor do_normalize image_mean image_std patch_size temporal_patch_size
    merge_size size
""".split()  # noqa: SIM905
# Where a checkpoint comes without these files: what Qwen publishes with its own. (pictures, videos)
_USUAL = {
    "qwen2": (
        CLIP | {"size": {"shortest_edge": 56 * 56, "longest_edge": 16384 * 28 * 28}},
        CLIP | {"size": {"shortest_edge": 128 * 28 * 28, "longest_edge": 768 * 28 * 28}},
    ),
    "qwen3": (
        _HALF | {"size": {"shortest_edge": 65536, "longest_edge": 16384 * 32 * 32}},
        _HALF | {"size": {"shortest_edge": 4096, "longest_edge": 24576 * 32 * 32}},
    ),
}


class Processing:
    """What turns anything that is a picture or a video into ``Patches``, with the settings of one checkpoint."""

    def __init__(self, image_processor: Any, video: VideoSettings, timed: bool = False) -> None:
        """``image_processor``: a stock one of the family. ``timed``: second_per_grid_ts goes to the model (Qwen2.5)."""
        self.image_processor, self.video, self.timed = image_processor, video, timed

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str], config: Any, revision: str | None = None) -> Processing:
        """Settings from processor_config.json, preprocessor_config.json and video_preprocessor_config.json.

        Args:
            name: a folder or a name on the hub; "" for none.
            config: the model's config; says the family, and the patch size where no file does.
        """
        files = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")
        whole, image, video = (_read(name, file, revision) for file in files)
        image = whole.get("image_processor") or image
        video = whole.get("video_processor") or video or image
        if name and not image:
            warnings.warn(f"{name} has no preprocessor_config.json: using Qwen's usual settings", stacklevel=2)
        return cls.from_dicts(image, video, config)

    @classmethod
    def from_dicts(cls, image: Mapping[str, Any], video: Mapping[str, Any], config: Any) -> Processing:
        """The same from the contents of the files; {} takes what Qwen publishes."""
        family, vision = config.model_type, config.vision_config
        shape = {
            "patch_size": vision.patch_size,
            "temporal_patch_size": vision.temporal_patch_size,
            "merge_size": vision.spatial_merge_size,
        }
        usual = [shape | values for values in _USUAL["qwen3" if family.startswith("qwen3") else "qwen2"]]
        image, video = ({**usual[i], **_sized(values, usual[i])} for i, values in enumerate((image, video)))
        # A copy of size: the processor of transformers 5.17 may write into the one it is given.
        stock = Qwen2VLImageProcessorPil(**{key: image[key] for key in _IMAGE_KEYS if key in image})
        return cls(stock, VideoSettings.from_dict(video, family), family == "qwen2_5_vl")

    @classmethod
    def from_processor(cls, processor: Any, config: Any) -> Processing:
        """From the processor of transformers (AutoProcessor), from one for pictures alone, or as it is."""
        if isinstance(processor, Processing):
            return processor
        image = getattr(processor, "image_processor", processor)
        if not hasattr(image, "merge_size"):
            raise ValueError(
                f"processor={type(processor).__name__} has no settings of a Qwen image processor: give the processor "
                "of this checkpoint, or leave it out"
            )
        video = getattr(processor, "video_processor", None) or image
        made = cls.from_dicts({}, getattr(video, "to_dict", dict)(), config)
        made.image_processor = image
        return made

    @property
    def merge(self) -> int:
        return self.image_processor.merge_size

    @cached_property
    def width(self) -> int:
        """Numbers in a patch."""
        return 3 * self.image_processor.temporal_patch_size * self.image_processor.patch_size**2

    def tokens(self, patches: Patches) -> int:
        return math.prod(patches.grid) // self.merge**2

    def pictures(self, source: Any, min_pixels: int | None = None, max_pixels: int | None = None) -> list[Patches]:
        """Any picture, list or batch of pictures, or processed patches; see ``ChatMixin.chat``. None gives []."""
        if source is None:
            return []
        if (ready := self._ready(source, "pixel_values", "image_grid_thw")) is not None:
            return ready
        if isinstance(source, Mapping):
            return [self._element(source, min_pixels, max_pixels)]
        if isinstance(source, (list, tuple)):
            if not source:
                raise ValueError("image=[] is empty: give at least one picture, or image=None for text alone")
            return [patches for one in source for patches in self.pictures(one, min_pixels, max_pixels)]
        return [self._picture(picture, min_pixels, max_pixels) for picture in to_pictures(source)]

    def videos(self, source: Any, min_pixels: int | None = None, max_pixels: int | None = None) -> list[Patches]:
        """Any video or list of videos, or processed patches; see ``ChatMixin.chat``. None gives []."""
        if source is None:
            return []
        if (ready := self._ready(source, "pixel_values_videos", "video_grid_thw")) is not None:
            return ready
        if isinstance(source, (list, tuple)) and not source:
            raise ValueError("video=[] has no frames: give at least one, or video=None")
        if is_array(source) and source.ndim == 5:
            source = list(source)
        if isinstance(source, (list, tuple)):
            frames = [_is_frame(one) for one in source]
            if any(frames) and not all(frames):
                raise ValueError("video= holds both frames and videos: give a list of either")
            if not any(frames):
                return [patches for one in source for patches in self.videos(one, min_pixels, max_pixels)]
        element = dict(source) if isinstance(source, Mapping) else {"video": source}
        if "video" not in element:
            raise ValueError(f"video= is a dict of {', '.join(map(str, element))}: give {{'video': file or frames}}")
        budget = {"min_pixels": min_pixels, "max_pixels": max_pixels}
        element = {key: value for key, value in budget.items() if value is not None} | element
        return [self._video(element)]

    def collect(self, pictures: Sequence[Patches], videos: Sequence[Patches]) -> dict[str, Tensor]:
        """The keywords of the model for all pictures and videos of a prompt, in its order."""
        inputs: dict[str, Tensor] = {}
        if pictures:
            inputs["pixel_values"] = torch.cat([one.pixels for one in pictures])
            inputs["image_grid_thw"] = torch.tensor([one.grid for one in pictures])
        if videos:
            inputs["pixel_values_videos"] = torch.cat([one.pixels for one in videos])
            inputs["video_grid_thw"] = torch.tensor([one.grid for one in videos])
            if self.timed:
                inputs["second_per_grid_ts"] = torch.tensor([one.interval for one in videos])
        return inputs

    def _picture(self, picture: Image.Image, min_pixels: int | None, max_pixels: int | None) -> Patches:
        check_ratio(picture.height, picture.width)
        size = {key: self.image_processor.size[key] for key in ("shortest_edge", "longest_edge")}
        least, most = _budget(min_pixels, max_pixels, *size.values())
        size = {"shortest_edge": least, "longest_edge": most}
        out = self.image_processor(images=[picture], size=size, return_tensors="pt")
        return Patches(out["pixel_values"].float(), tuple(out["image_grid_thw"][0].tolist()))

    def _element(self, element: Mapping[str, Any], min_pixels: int | None, max_pixels: int | None) -> Patches:
        source = element.get("image", element.get("image_url"))
        if source is None:
            raise ValueError(
                f"image= is a dict of {', '.join(map(str, element))}: give {{'image': picture}} or processed "
                "patches {'pixel_values': ..., 'image_grid_thw': ...}"
            )
        picture = to_picture(source.get("url") if isinstance(source, Mapping) else source)
        return self._picture(picture, element.get("min_pixels", min_pixels), element.get("max_pixels", max_pixels))

    def _video(self, element: dict[str, Any]) -> Patches:
        factor = self.video.patch * self.video.merge
        clip = open_clip(element)
        asked = element.get("min_pixels"), element.get("max_pixels")
        least, most = _budget(*asked, *self.video.budget(len(clip.frames)))
        clip = fit_clip(clip, element | {"min_pixels": least, "max_pixels": most}, factor)
        pixels, grid = self.video.patches(clip.frames, resize=False)
        return Patches(pixels, grid, group_seconds(clip, self.video.temporal), self.video.temporal / clip.sample_fps)

    def _ready(self, source: Any, pixels: str, grids: str) -> list[Patches] | None:
        """Patches that a processor made: a dict with these keys, or a pair (patches, grid). None for anything else."""
        extra: Mapping[str, Any] = {}
        if isinstance(source, Mapping):
            if pixels not in source:
                return None
            if source.get(grids) is None:
                raise ValueError(f"{pixels} without {grids}: give both, as the processor returned them")
            extra, pair = source, (source[pixels], source[grids])
        else:
            pair = source
            if not (isinstance(pair, tuple) and len(pair) == 2 and is_array(pair[0]) and pair[0].ndim == 2):
                return None
            if pair[0].shape[1] != self.width:
                return None
        values = torch.as_tensor(pair[0]).float().cpu()
        layout = torch.as_tensor(pair[1]).reshape(-1, 3).tolist()
        lengths = [math.prod(grid) for grid in layout]
        if values.ndim != 2 or values.shape[1] != self.width or sum(lengths) != len(values):
            raise ValueError(
                f"{pixels} of shape {tuple(values.shape)} with {grids}={layout}: this model takes ({sum(lengths)}, "
                f"{self.width}) for it"
            )
        if not values.isfinite().all():
            raise ValueError(f"{pixels} holds NaN or infinity: process the picture again")
        parts = zip(values.split(lengths), layout, strict=True)
        return [self._given(part, grid, extra, i) for i, (part, grid) in enumerate(parts)]

    def _given(self, pixels: Tensor, grid: list[int], extra: Mapping[str, Any], number: int) -> Patches:
        """Processed patches; of a video without times, frames count as two a second."""
        step = self.video.temporal / FPS
        if extra.get("second_per_grid_ts") is not None:
            step = float(extra["second_per_grid_ts"][number])
        seconds = tuple((i + 0.5 - 0.5 / self.video.temporal) * step for i in range(grid[0]))
        if extra.get("video_metadata"):
            data = extra["video_metadata"][number]
            clip = Clip(pixels, list(data["frames_indices"]), float(data["fps"] or 24), data["total_num_frames"])
            seconds, step = group_seconds(clip, self.video.temporal), self.video.temporal / clip.sample_fps
        return Patches(pixels, tuple(grid), seconds, step)


def _is_frame(one: Any) -> bool:
    """Whether an entry of a list is a frame (of one video), rather than a video (of several)."""
    if isinstance(one, (str, os.PathLike)):
        return not os.fspath(one).lower().endswith(VIDEO_SUFFIXES)
    return is_single(one)


def _budget(min_pixels: Any, max_pixels: Any, least: float, most: float) -> tuple[int, int]:
    """The pixels of a picture: what was asked for, else the checkpoint's. A default gives way to what was asked."""
    for name, value in (("min_pixels", min_pixels), ("max_pixels", max_pixels)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or value < 1):
            raise ValueError(f"{name}={value!r}: give a positive number of pixels, such as 256 * 28 * 28")
    if min_pixels is not None and max_pixels is not None and min_pixels > max_pixels:
        raise ValueError(f"min_pixels={min_pixels} is above max_pixels={max_pixels}: swap or change them")
    if min_pixels is None:
        min_pixels = least if max_pixels is None else min(least, max_pixels)
    return int(min_pixels), int(max(most, min_pixels) if max_pixels is None else max_pixels)


def _sized(values: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    """The values that are set, with the older spellings of ``size`` (min_pixels, max_pixels) translated."""
    values = {key: value for key, value in values.items() if value is not None}
    given, size = dict(values.get("size") or {}), dict(usual["size"])
    for new, old in (("shortest_edge", "min_pixels"), ("longest_edge", "max_pixels")):
        found = [source[key] for source, key in ((values, old), (given, new), (given, old)) if source.get(key)]
        size[new] = int(found[0]) if found else size[new]
    return values | {"size": size}


def _read(name: str | os.PathLike[str], file: str, revision: str | None) -> dict[str, Any]:
    """A JSON file of a folder or hub model, {} where there is none."""
    if not name:
        return {}
    try:
        path = cached_file(str(name), file, revision=revision, _raise_exceptions_for_missing_entries=False)
        values = json.loads(Path(path).read_text()) if path else {}
    except OSError:  # the folder or the hub is gone since the model was loaded
        return {}
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} of {name} is not valid JSON ({error}): download the model again") from None
    if not isinstance(values, dict):
        raise ValueError(f"{file} of {name} does not hold an object: download the model again")
    return values
