"""Pictures and videos of a chat as Qwen's recipe wants them: ``process_vision_info`` without torchvision and decord.

The rules (which frames, which sizes) are those of qwen-vl-utils 0.0.14: the sides of a picture become multiples of a
factor, its pixels stay within a budget; of a video, two frames a second, at least 4 and at most 768, spread evenly,
each within a budget that shrinks as the video gets longer. Frames are decoded by PyAV.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mob.media import ImageError
from mob.video import VideoError, probe, read_frames
from Qwen2VL_MoB.pictures import channels_last, is_array, levels, to_picture

MAX_RATIO = 200
MERGE = 2  # a visual token shows MERGE x MERGE patches
IMAGE_TOKENS = (4, 16384)  # least and most tokens of a picture
FRAME_TOKENS = (128, 768)  # of a video frame
FPS = 2.0
FRAME_FACTOR = 2  # frames come in pairs
FPS_FRAMES = (4, 768)
CONTEXT = 128_000  # tokens; a video may fill 90 % of them

Element = Mapping[str, Any]


def smart_resize(
    height: int, width: int, factor: int, min_pixels: float | None = None, max_pixels: float | None = None
) -> tuple[int, int]:
    """(height, width) in multiples of ``factor``, about as wide as high as before, with min..max pixels.

    A side is at least ``factor``, even where a narrow picture then has more than max_pixels (as transformers has it;
    qwen-vl-utils gives 0 and fails).

    Raises:
        ValueError: sides that differ by more than 200 times, or max_pixels below min_pixels.
    """
    least, most = (tokens * factor**2 for tokens in IMAGE_TOKENS)
    least, most = least if min_pixels is None else min_pixels, most if max_pixels is None else max_pixels
    if most < least:
        raise ValueError(f"max_pixels={most:g} is below min_pixels={least:g}: raise the one or lower the other")
    check_ratio(height, width)
    rows, columns = (max(factor, round(side / factor) * factor) for side in (height, width))
    if rows * columns > most:
        shrink = math.sqrt(height * width / most)
        rows, columns = (max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width))
    elif rows * columns < least:
        grow = math.sqrt(least / (height * width))
        rows, columns = (math.ceil(side * grow / factor) * factor for side in (height, width))
    return rows, columns


def check_ratio(height: int, width: int) -> None:
    """ValueError for sides that differ by more than 200 times, which every Qwen processor refuses."""
    if min(height, width) < 1:
        raise ValueError(f"a picture of {width} x {height} pixels is empty: give one with at least one pixel")
    if max(height, width) > MAX_RATIO * min(height, width):
        raise ValueError(
            f"a picture of {width} x {height} pixels is more than {MAX_RATIO} times as long as narrow, which Qwen "
            "refuses: crop it, or cut it into several pictures"
        )


def smart_nframes(element: Element, total_frames: int, video_fps: float) -> int:
    """How many frames of a video to look at: an even number.

    ``element`` may say ``nframes``, or ``fps`` (frames a second, default 2) with ``min_frames`` and ``max_frames``.

    Raises:
        ValueError: both are said, or the video has too few frames.
    """
    if "fps" in element and "nframes" in element:
        raise ValueError("a video is given both fps and nframes: keep one of them")
    if "nframes" in element:
        count = round(element["nframes"] / FRAME_FACTOR) * FRAME_FACTOR
    else:
        least = math.ceil(element.get("min_frames", FPS_FRAMES[0]) / FRAME_FACTOR) * FRAME_FACTOR
        most = math.floor(element.get("max_frames", min(FPS_FRAMES[1], total_frames)) / FRAME_FACTOR) * FRAME_FACTOR
        wanted = total_frames / video_fps * element.get("fps", FPS)
        count = math.floor(min(max(wanted, least), most, total_frames) / FRAME_FACTOR) * FRAME_FACTOR
    if not FRAME_FACTOR <= count <= total_frames:
        raise ValueError(
            f"{count} frames were asked for of {total_frames} there are: ask for {FRAME_FACTOR} to {total_frames}"
            + ("" if total_frames >= FRAME_FACTOR else ", or give this single frame as a picture")
        )
    return count


def frame_range(element: Element, total_frames: int, video_fps: float) -> tuple[int, int]:
    """First and last frame between ``video_start`` and ``video_end`` (seconds; default: the whole video).

    Raises:
        ValueError: nothing lies between them.
    """
    start, end, seconds = element.get("video_start"), element.get("video_end"), total_frames / video_fps
    first = 0 if start is None else math.ceil(max(0.0, min(start, seconds)) * video_fps)
    last = total_frames - 1
    if end is not None:
        last = min(math.floor(max(0.0, min(end, seconds)) * video_fps), last)
    if first >= last and not (start is None and end is None):
        raise ValueError(
            f"video_start={start} to video_end={end} leaves no frames of {seconds:.2f} s ({total_frames} frames at "
            f"{video_fps:g} a second): choose a later end or an earlier start"
        )
    return first, last


@dataclass
class Clip:
    """Frames of one video and when they were shown.

    Attributes:
        frames: (T, 3, H, W), levels 0..255; uint8, or float as qwen-vl-utils returns them.
        indices: number of each frame in the original video.
        fps: frames a second of the original video.
        total: frames of the original video (or of the range that was asked for).
        backend: what decoded them, None for frames that were given.
    """

    frames: Tensor
    indices: list[int]
    fps: float
    total: float
    backend: str | None = None

    @property
    def sample_fps(self) -> float:
        """Frames a second among those that were chosen."""
        return len(self.indices) / max(self.total, 1e-6) * self.fps

    def metadata(self) -> dict[str, Any]:
        """As the processors of transformers take it."""
        values = {"fps": self.fps, "frames_indices": self.indices, "total_num_frames": self.total}
        return values | ({"video_backend": self.backend} if self.backend else {})


def open_clip(element: Element) -> Clip:
    """Read the frames that an element ``{"video": ..., "fps": ..., ...}`` asks for, in their own size.

    ``video`` is a file, a list of frames (anything that is a picture) or an array (T, 3, H, W) or (T, H, W, 3). Given
    frames are all kept, and count as ``sample_fps`` (default 2) frames a second; an odd number repeats its last one.

    Raises:
        ValueError: it cannot be read; one line.
    """
    video = element["video"]
    if isinstance(video, (str, os.PathLike)):
        return _open_file(os.fspath(video), element)
    if is_array(video):
        frames = _array_frames(video)
    elif isinstance(video, (list, tuple)):
        frames = _frame_list(video)
    else:
        raise ValueError(f"a video cannot be a {type(video).__name__}: give a file, a list of frames, or an array")
    return _given(frames, element)


def _open_file(path: str, element: Element) -> Clip:
    if path[:8].lower().startswith(("http://", "https://")):
        raise VideoError(f"{path} is on the network: download it, then give the file's path")
    info = probe(path)
    first, last = frame_range(element, info.frames, info.fps)
    total = last - first + 1
    count = smart_nframes(element, total, info.fps)
    indices = torch.linspace(first, last, count).round().long().tolist()
    frames = torch.from_numpy(read_frames(path, indices)).permute(0, 3, 1, 2)
    return Clip(frames, indices, info.fps, total, "pyav")


def _given(frames: Tensor, element: Element) -> Clip:
    if len(frames) % FRAME_FACTOR:
        frames = torch.cat([frames, frames[-1:]])
    sample_fps = float(element.get("sample_fps", FPS))
    fps = float(element.get("raw_fps", sample_fps))
    if sample_fps <= 0 or fps <= 0:
        raise ValueError(f"sample_fps={sample_fps:g} and raw_fps={fps:g}: both must be above 0")
    return Clip(frames, list(range(len(frames))), fps, len(frames) / sample_fps * fps)


def _array_frames(video: Any) -> Tensor:
    """uint8 (T, 3, H, W)."""
    if video.ndim != 4:
        raise ValueError(f"a video of shape {tuple(video.shape)}: give (T, 3, H, W) or (T, H, W, 3)")
    if 3 not in (video.shape[1], video.shape[3]):
        raise ValueError(f"a video of shape {tuple(video.shape)} is not RGB: give (T, 3, H, W) or (T, H, W, 3)")
    frames = channels_last(levels(video))
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(frames, -1, 1)))


def _frame_list(frames: Sequence[Any]) -> Tensor:
    """uint8 (T, 3, H, W). Arrays of one shape are read as one array, so that a dark frame keeps its scale."""
    if frames and all(is_array(frame) and frame.shape == frames[0].shape and frame.ndim == 3 for frame in frames):
        together = [frame if isinstance(frame, Tensor) else torch.from_numpy(frame) for frame in frames]
        if all(frame.dtype == together[0].dtype for frame in together):
            return _array_frames(torch.stack(together))
    return _stack([to_picture(frame) for frame in frames])


def _stack(pictures: list[Image.Image]) -> Tensor:
    if not pictures:
        raise VideoError("the video has no frames: give at least one")
    if len(sizes := {picture.size for picture in pictures}) > 1:
        shown = ", ".join(f"{width} x {height}" for width, height in sorted(sizes)[:3])
        raise VideoError(f"the frames of a video have different sizes ({shown}): resize them to one")
    return torch.stack([torch.from_numpy(np.array(picture)).permute(2, 0, 1) for picture in pictures])


def fit_clip(clip: Clip, element: Element, factor: int) -> Clip:
    """The clip with frames within the budget of a video, sides multiples of ``factor``.

    ``element`` may say ``min_pixels``, ``max_pixels`` (of a frame), ``total_pixels`` (of the video), or
    ``resized_height`` and ``resized_width``.
    """
    count, _, height, width = clip.frames.shape
    least = element.get("min_pixels", FRAME_TOKENS[0] * factor**2)
    total = element.get("total_pixels", CONTEXT * factor**2 * 0.9)
    most = max(min(FRAME_TOKENS[1] * factor**2, total / count * FRAME_FACTOR), int(least * 1.05))
    most = min(element.get("max_pixels", most), most)
    if "resized_height" in element and "resized_width" in element:
        size = smart_resize(element["resized_height"], element["resized_width"], factor)
    else:
        size = smart_resize(height, width, factor, least, most)
    return Clip(_resize(clip.frames, size), clip.indices, clip.fps, clip.total, clip.backend)


def _resize(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Bicubic with antialiasing, in float32, rounded back to uint8: what torchvision's ``resize`` does."""
    if tuple(frames.shape[-2:]) == size:
        return frames
    scaled = [
        torch.nn.functional.interpolate(frame[None].float(), size, mode="bicubic", antialias=True) for frame in frames
    ]
    return torch.cat(scaled).clamp(0, 255).round().to(torch.uint8)


def fetch_image(element: Element, image_patch_size: int = 14) -> Image.Image:
    """The picture of ``{"image": ...}`` (or ``image_url``), sides multiples of twice the patch size.

    ``min_pixels`` and ``max_pixels``, or ``resized_height`` and ``resized_width``, say how large.
    """
    source = element["image"] if "image" in element else element["image_url"]
    if isinstance(source, Mapping):  # the form of OpenAI's messages
        source = source.get("url")
    picture, factor = to_picture(source), image_patch_size * MERGE
    if "resized_height" in element and "resized_width" in element:
        height, width = smart_resize(element["resized_height"], element["resized_width"], factor)
    else:
        budget = element.get("min_pixels"), element.get("max_pixels")
        height, width = smart_resize(picture.height, picture.width, factor, *budget)
    return picture.resize((width, height))


def fetch_video(element: Element, image_patch_size: int = 14) -> Clip:
    """The frames of ``{"video": ...}`` as qwen-vl-utils gives them, float (T, 3, H, W) with levels 0..255.

    Single frames are first resized as pictures, to multiples of four times the patch size, as qwen-vl-utils does.
    """
    factor, video = image_patch_size * MERGE, element["video"]
    if isinstance(video, (list, tuple)):
        info = {key: value for key, value in element.items() if key not in ("type", "video")}
        clip = _given(_stack([fetch_image({"image": one, **info}, factor) for one in video]), element)
    else:
        clip = open_clip(element)
    clip = fit_clip(clip, element, factor)
    clip.frames = clip.frames.float()
    return clip


def extract_vision_info(conversations: Sequence[Any]) -> list[Element]:
    """The picture and video elements of one conversation (a list of messages) or of several, in order."""
    if len(conversations) and isinstance(conversations[0], Mapping):
        conversations = [conversations]
    contents = [message["content"] for conversation in conversations for message in conversation]
    parts = [part for content in contents if isinstance(content, (list, tuple)) for part in content]
    kinds = ("image", "image_url", "video")
    return [part for part in parts if any(kind in part for kind in kinds) or part.get("type") in kinds]


def process_vision_info(
    conversations: Sequence[Any],
    return_video_kwargs: bool = False,
    return_video_metadata: bool = False,
    image_patch_size: int = 14,
) -> tuple:
    """Pictures and videos of a chat: ``(images, videos)``, each a list or None.

    qwen-vl-utils answers where it can be imported (it needs torchvision), else this file does, in the same way.

    Args:
        conversations: a list of messages, or a list of such lists.
        return_video_kwargs: add what to pass on to a processor: ``do_sample_frames`` and the ``fps`` of each video.
        return_video_metadata: each video as (frames, metadata), for Qwen3-VL.
        image_patch_size: 14 for Qwen2-VL and Qwen2.5-VL, 16 for Qwen3-VL.

    Raises:
        ValueError: a picture or video that cannot be read; one line.
    """
    theirs = _qwen_vl_utils()
    if theirs is not None:
        given = {
            "return_video_kwargs": return_video_kwargs,
            "return_video_metadata": return_video_metadata,
            "image_patch_size": image_patch_size,
        }
        # Older releases lack the later arguments.
        usual = {"return_video_kwargs": False, "return_video_metadata": False, "image_patch_size": 14}
        return theirs(conversations, **{key: value for key, value in given.items() if value != usual[key]})
    return own_vision_info(conversations, return_video_kwargs, return_video_metadata, image_patch_size)


def own_vision_info(
    conversations: Sequence[Any],
    return_video_kwargs: bool = False,
    return_video_metadata: bool = False,
    image_patch_size: int = 14,
) -> tuple:
    """``process_vision_info`` by Pillow and PyAV, whatever is installed."""
    images, videos, rates = [], [], []
    for element in extract_vision_info(conversations):
        if "image" in element or "image_url" in element:
            images.append(fetch_image(element, image_patch_size))
        elif "video" in element:
            clip = fetch_video(element, image_patch_size)
            videos.append((clip.frames, clip.metadata()) if return_video_metadata else clip.frames)
            rates.append(clip.sample_fps)
        else:
            kind = element.get("type")
            raise ImageError(f"an element of type {kind!r} names no source: add 'image' or 'video' to it")
    found = images or None, videos or None
    if not return_video_kwargs:
        return found
    return *found, {"do_sample_frames": False} | ({} if return_video_metadata else {"fps": rates})


def _qwen_vl_utils() -> Any:
    try:
        from qwen_vl_utils import process_vision_info as theirs
    except ImportError:  # not installed, or installed without torchvision
        return None
    return theirs
