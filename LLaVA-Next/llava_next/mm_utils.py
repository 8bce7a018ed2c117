"""What ``llava.mm_utils`` holds, and videos.

``process_images`` follows the processor: those of OneVision and LLaVA-NeXT-Video cut tiles their own way.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from llava import mm_utils as single_views
from llava.mm_utils import (
    MAX_IMAGE_PIXELS,
    ImageError,
    KeywordsStoppingCriteria,
    divide_to_patches,
    expand2square,
    get_anyres_image_grid_shape,
    get_model_name_from_path,
    load_image,
    load_image_from_base64,
    load_images,
    process_anyres_image,
    resize_and_pad_image,
    select_best_resolution,
    tokenizer_image_token,
)
from llava_next.processing import process_frames
from mob.video import VideoError, probe, read_frames, uniform_indices

__all__ = [
    "MAX_IMAGE_PIXELS",
    "ImageError",
    "KeywordsStoppingCriteria",
    "VideoError",
    "divide_to_patches",
    "expand2square",
    "get_anyres_image_grid_shape",
    "get_model_name_from_path",
    "load_image",
    "load_image_from_base64",
    "load_images",
    "load_video",
    "process_anyres_image",
    "process_images",
    "process_video",
    "resize_and_pad_image",
    "select_best_resolution",
    "tokenizer_image_token",
]

FRAMES = 8  # what Video-LLaVA was trained on


def load_video(source: str | os.PathLike[str], frames: int = FRAMES) -> np.ndarray:
    """``frames`` frames spread evenly over a video file, both ends included: uint8 (frames, height, width, 3), RGB.

    A shorter video repeats some. Raises VideoError, one line, for what is missing, empty, damaged or without frames.
    """
    return read_frames(source, uniform_indices(probe(source).frames, frames))


def process_video(
    source: str | os.PathLike[str] | Sequence[Image.Image] | np.ndarray, processor: Any, frames: int | None = FRAMES
) -> torch.Tensor:
    """(frames, 3, H, W), ready for ``prepare`` and for ``generate(images=[...], modalities=["video"])``.

    Args:
        source: a video file; or its frames, as PIL pictures or uint8 (F, height, width, 3), of which ``frames`` are
            taken evenly (None: all).
        processor: the image processor that was loaded with the model.

    Raises:
        VideoError: see ``load_video``; also no frames at all.
    """
    if isinstance(source, (str, os.PathLike)):
        source = load_video(source, FRAMES if frames is None else frames)
    if not len(source):
        raise VideoError("a video without frames: give at least one")
    chosen = range(len(source)) if frames is None else uniform_indices(len(source), frames)
    pictures = [one if isinstance(one, Image.Image) else Image.fromarray(np.asarray(one)) for one in source]
    return process_frames([pictures[index].convert("RGB") for index in chosen], processor)


def process_images(images: Sequence[Image.Image], image_processor: Any, model_cfg: Any) -> Any:
    """Model inputs, for ``generate(images=...)``: per picture [1 + T, 3, H, W], or one tensor [B, 3, H, W].

    With a processor that cuts tiles, and unless ``model_cfg.image_aspect_ratio`` is "pad", every picture becomes its
    whole and its tiles. Else see ``llava.mm_utils.process_images``.
    """
    pinpoints = getattr(model_cfg, "image_grid_pinpoints", None)
    if not hasattr(image_processor, "image_grid_pinpoints") or not pinpoints:
        return single_views.process_images(images, image_processor, model_cfg)
    if getattr(model_cfg, "image_aspect_ratio", None) == "pad":
        mean = tuple(int(channel * 255) for channel in image_processor.image_mean)
        return process_frames([expand2square(image.convert("RGB"), mean) for image in images], image_processor)
    options = {"image_grid_pinpoints": [list(pair) for pair in pinpoints], "return_tensors": "pt"}
    return [image_processor([image.convert("RGB")], **options)["pixel_values"][0] for image in images]
