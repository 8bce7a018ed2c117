"""From prompts, pictures and videos to model inputs, without torchvision.

transformers' own processors for these families read videos with torchvision. Here pictures go through the stock Pillow
processors, frames of a video through the same as single pictures, and each placeholder of the prompt is repeated as
often as the model will make features for it (``llava_next.tokens``).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from PIL import Image
from torch import Tensor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from llava.constants import DEFAULT_IMAGE_TOKEN, DEFAULT_VIDEO_TOKEN
from llava.mm_utils import expand2square, seen_box
from llava.mm_utils import process_images as process_single_views
from llava_next.tokens import FAMILIES, ONEVISION, VIDEO_LLAVA, image_tokens, video_tokens
from mob.media import ImageError
from mob.picture import Box

IMAGE, VIDEO = "image", "video"
_PLACES = re.compile(f"({re.escape(DEFAULT_IMAGE_TOKEN)}|{re.escape(DEFAULT_VIDEO_TOKEN)})")
Picture = Image.Image


def prepare(
    prompt: str | Sequence[str],
    tokenizer: Any,
    image_processor: Any,
    config: Any,
    images: Sequence[Any] = (),
    videos: Sequence[Any] = (),
) -> dict[str, Tensor]:
    """Everything that the model's ``forward`` and ``generate`` need, on the CPU.

    Args:
        prompt: text with one ``<image>`` for each picture and one ``<video>`` for each video; or a list of such texts,
            then padded on the left.
        tokenizer, image_processor: as ``load_pretrained_model`` returns them.
        config: the model's config.
        images: PIL pictures in the order of their places; for a list of prompts, one list for each prompt.
        videos: per video, processed frames (F, 3, H, W) as ``process_video`` returns them; for a list of prompts, one
            list for each. All with the same number of frames.

    Raises:
        ValueError: placeholders and media do not match, or frames of another size than the model's.
    """
    check_family(config)
    single = isinstance(prompt, str)
    prompts = [prompt] if single else list(prompt)
    images = [list(images)] if single else [list(sample) for sample in images or [()] * len(prompts)]
    videos = [list(videos)] if single else [list(sample) for sample in videos or [()] * len(prompts)]
    if not len(images) == len(videos) == len(prompts):
        raise ValueError(f"{len(prompts)} prompts, {len(images)} lists of images, {len(videos)} of videos: make equal")
    tokens = {config.image_token_id: IMAGE, config.video_token_id: VIDEO}
    rows, places, counts = [], [], []
    for text, pictures, clips in zip(prompts, images, videos, strict=True):
        row = token_ids(text, tokenizer)
        here = [i for i, token in enumerate(row) if token in tokens]
        kinds = [tokens[row[i]] for i in here]
        _check_placeholders(kinds, len(pictures), len(clips))
        sizes = iter([image_tokens(config, picture.size, len(pictures) == 1) for picture in pictures])
        lengths = iter([video_tokens(config, len(clip)) for clip in clips])
        rows.append(row)
        places.append(here)
        counts.append([next(sizes if kind == IMAGE else lengths) for kind in kinds])
    out = expand(rows, places, counts, config)
    if any(images):
        out |= process_pictures(images, image_processor, config)
    if any(videos):
        out["pixel_values_videos"] = _stack_videos([clip for sample in videos for clip in sample], config)
    return out


def expand(
    rows: Sequence[list[int]], places: Sequence[list[int]], counts: Sequence[list[int]], config: Any
) -> dict[str, Tensor]:
    """``input_ids`` and ``attention_mask`` (B, T), padded on the left: the token at each place repeated that often."""
    longer = []
    for row, here, times in zip(rows, places, counts, strict=True):
        repeats = torch.ones(len(row), dtype=torch.long)
        repeats[here] = torch.tensor(times, dtype=torch.long)
        longer.append(torch.tensor(row, dtype=torch.long).repeat_interleave(repeats))
    width = max(map(len, longer))
    pad = config.text_config.pad_token_id or 0
    ids = torch.stack([torch.nn.functional.pad(row, (width - len(row), 0), value=pad) for row in longer])
    mask = torch.stack([torch.arange(width) >= width - len(row) for row in longer]).long()
    return {"input_ids": ids, "attention_mask": mask}


def process_pictures(images: Sequence[Sequence[Picture]], image_processor: Any, config: Any) -> dict[str, Tensor]:
    """Pixel values and what the model wants to know about them, for the pictures of each sample.

    OneVision cuts a picture that is alone in its sample into tiles; several become one padded square view each.
    """
    flat = [picture.convert("RGB") for sample in images for picture in sample]
    if config.model_type == VIDEO_LLAVA:
        return {picture_key(config): process_single_views(flat, image_processor, config)}
    pinpoints = [list(pair) for pair in config.image_grid_pinpoints]
    if config.model_type == ONEVISION:
        mean = tuple(int(channel * 255) for channel in image_processor.image_mean)
        given = [
            [one if len(sample) == 1 else expand2square(one.convert("RGB"), mean) for one in sample]
            for sample in images
            if sample
        ]
    else:
        given = flat
    out = dict(image_processor(given, image_grid_pinpoints=pinpoints, return_tensors="pt"))
    out["image_sizes"] = torch.tensor([picture.size[::-1] for picture in flat])  # of the pictures before padding
    if "batch_num_images" in out:
        out["batch_num_images"] = torch.as_tensor(out["batch_num_images"])
    return out


def process_frames(frames: Sequence[Picture], image_processor: Any) -> Tensor:
    """(F, 3, H, W): each frame processed as one picture without tiles."""
    if not len(frames):
        raise ImageError("a video without frames: give at least one")
    return process_single_views(list(frames), frame_processor(image_processor), SimpleNamespace())


def seen(size: tuple[int, int], pictures: int, image_processor: Any, config: Any) -> Box:
    """The region that the model sees of one of ``pictures`` pictures, in its pixels; beyond its edges is padding."""
    if config.model_type == ONEVISION and pictures > 1:  # each is squared
        left, top = (size[0] - max(size)) / 2, (size[1] - max(size)) / 2
        return left, top, left + max(size), top + max(size)
    return seen_box(size, image_processor, config)


def seen_of_frames(size: tuple[int, int], image_processor: Any) -> Box:
    """The same for the frames of a video."""
    return seen_box(size, frame_processor(image_processor), SimpleNamespace())


def frame_processor(image_processor: Any) -> CLIPImageProcessorPil:
    """A processor for single views with the size, colours and resampling of ``image_processor``."""
    crop = getattr(image_processor, "crop_size", None)
    return CLIPImageProcessorPil(
        size=dict(image_processor.size),
        crop_size=dict(crop) if crop else None,
        do_center_crop=bool(crop and image_processor.do_center_crop),
        image_mean=image_processor.image_mean,
        image_std=image_processor.image_std,
        resample=image_processor.resample,
    )


def picture_key(config: Any) -> str:
    """What the model calls its pictures: Video-LLaVA says ``pixel_values_images`` before transformers 5.23."""
    known = inspect.signature(transformers.VideoLlavaForConditionalGeneration.forward).parameters
    return "pixel_values" if config.model_type != VIDEO_LLAVA or "pixel_values" in known else "pixel_values_images"


def check_family(config: Any) -> None:
    if config.model_type not in FAMILIES:
        raise ValueError(
            f"a model of type {config.model_type!r} takes its inputs from llava.mm_utils, not from here ("
            f"{', '.join(FAMILIES)})"
        )


def token_ids(text: str, tokenizer: Any) -> list[int]:
    """Token ids with one placeholder for each picture and video; a prompt that has its BOS gets no second one.

    Checkpoints in the layout of transformers were tuned on whole prompts. Without a chat template, as the original
    ones, the texts between the placeholders are tokenised one by one (see ``llava.mm_utils.tokenizer_image_token``).
    """
    has_bos = bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)
    if tokenizer.chat_template:
        return list(tokenizer(text, add_special_tokens=not has_bos)["input_ids"])
    first, *rest = _PLACES.split(text)
    ids = list(tokenizer(first, add_special_tokens=not has_bos)["input_ids"])
    for place, chunk in zip(rest[::2], rest[1::2], strict=True):
        ids += [tokenizer.convert_tokens_to_ids(place), *tokenizer(chunk, add_special_tokens=False)["input_ids"]]
    return ids


def _check_placeholders(kinds: list[str], images: int, videos: int) -> None:
    if (kinds.count(IMAGE), kinds.count(VIDEO)) != (images, videos):
        raise ValueError(
            f"the prompt names {kinds.count(IMAGE)} image(s) and {kinds.count(VIDEO)} video(s), and {images} and "
            f"{videos} were given: put one {DEFAULT_IMAGE_TOKEN} or {DEFAULT_VIDEO_TOKEN} into the prompt for each"
        )


def _stack_videos(videos: list[Tensor], config: Any) -> Tensor:
    """(V, F, 3, H, W)."""
    if len({len(video) for video in videos}) > 1:
        raise ValueError("videos of one call must have equally many frames: process them with the same number")
    expected, found = config.vision_config.image_size, tuple(videos[0].shape[-2:])
    if found != (expected, expected):
        raise ValueError(
            f"frames of {found[1]} x {found[0]} pixels, and this model sees {expected} x {expected}: use the image "
            "processor that was loaded with it"
        )
    return torch.stack(list(videos))
