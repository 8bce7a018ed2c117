"""Reading videos with PyAV: how long they are, and chosen frames of them. ``pip install av``.

A frame is known by its number in order of presentation. Whatever cannot be read gives ``VideoError``, one clear line.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mob.media import MAX_IMAGE_PIXELS, ImageError

_SLOW = 2000  # decoded frames from which on a progress bar is worth its line


class VideoError(ImageError):
    """A video that cannot be used; the message is one line that says what is wrong and what to do."""


@dataclass(frozen=True)
class VideoInfo:
    """What a video holds. ``fps`` is the mean over its length; ``width`` and ``height`` in pixels."""

    path: Path
    frames: int
    fps: float
    width: int
    height: int

    @property
    def seconds(self) -> float:
        return self.frames / self.fps


def uniform_indices(frames: int, count: int) -> list[int]:
    """``count`` frame numbers spread over 0 .. frames - 1, both ends included, rounded to the nearest (halves to even).

    A video with fewer frames repeats some, so that exactly ``count`` come back. ValueError unless both are positive.
    """
    if frames < 1 or count < 1:
        raise ValueError(f"cannot choose {count} of {frames} frames: both must be at least 1")
    return [round(i) for i in np.linspace(0, frames - 1, count).tolist()]


def probe(path: str | os.PathLike[str]) -> VideoInfo:
    """Length, rate and size of a video file, without decoding its frames where the container counts them.

    Raises:
        VideoError: no such file, no video in it, or none that PyAV can read.
    """
    path = _checked(path)
    with _opened(path) as container:
        stream = _stream(container, path)
        width, height = stream.codec_context.width, stream.codec_context.height
        if width * height > MAX_IMAGE_PIXELS:
            raise VideoError(f"{path} has frames of {width} x {height} pixels: shrink it first")
        frames = stream.frames or _count(container, stream, path)
        rate = stream.average_rate or stream.guessed_rate
    if not frames:
        raise VideoError(f"{path} holds no frames: copy or download the video again")
    return VideoInfo(path, frames, float(rate) if rate else 1.0, width, height)


def read_frames(path: str | os.PathLike[str], indices: Sequence[int]) -> np.ndarray:
    """The frames of these numbers, in the order asked for: uint8 (len(indices), height, width, 3), RGB.

    Numbers may repeat. Where the file ends before a number, although its header promised more, the last frame there is
    stands in. A progress bar shows while thousands of frames are decoded.

    Raises:
        ValueError: no indices, or a negative one.
        VideoError: see ``probe``; also a file that is damaged before the first frame asked for.
    """
    if not len(indices) or min(indices) < 0:
        raise ValueError(f"frame numbers {list(indices)}: give at least one, counted from 0")
    path = _checked(path)
    wanted, last = set(indices), max(indices)
    found: dict[int, np.ndarray] = {}
    with _opened(path) as container:
        stream = _stream(container, path)
        stream.thread_type = "AUTO"
        frame, number = None, -1
        bar = tqdm(total=last + 1, desc=path.name, unit="frame", leave=False, disable=last < _SLOW)
        with bar:
            for number, frame in enumerate(_decoded(container, stream, path)):
                bar.update()
                if number in wanted:
                    found[number] = frame.to_ndarray(format="rgb24")
                if number == last:
                    break
        if frame is None:
            raise VideoError(f"{path} holds no frames: copy or download the video again")
        if number < last:
            rest = frame.to_ndarray(format="rgb24")
            found |= dict.fromkeys(wanted - set(found), rest)
    return np.stack([found[index] for index in indices])


def _checked(path: str | os.PathLike[str]) -> Path:
    path = Path(os.fspath(path).removeprefix("file://"))
    try:
        if not path.exists():
            raise VideoError(f"there is no video at {path}: check the path")
        if not path.is_file():
            raise VideoError(f"{path} is not a file: name one video file")
        if path.stat().st_size == 0:
            raise VideoError(f"{path} is empty (0 bytes): copy or download the video again")
    except OSError as error:
        raise VideoError(f"{str(path)[:200]} cannot be read ({error.strerror}): check its name") from error
    return path


def _opened(path: Path) -> Any:
    try:
        import av  # here, so that pictures need no PyAV
    except ImportError as error:
        raise VideoError(f"{path} needs PyAV to be read: pip install av") from error
    try:
        return av.open(str(path))
    except (av.FFmpegError, OSError, ValueError) as error:
        raise VideoError(f"{path} is damaged, or not a video that PyAV knows ({error})") from error


def _stream(container: Any, path: Path) -> Any:
    if not container.streams.video:
        raise VideoError(f"{path} has no video stream: is it a sound file?")
    return container.streams.video[0]


def _decoded(container: Any, stream: Any, path: Path) -> Any:
    """Frames in order of presentation; a damaged end is where the video ends."""
    import av

    begun = False
    try:
        for frame in container.decode(stream):
            yield frame
            begun = True
    except av.FFmpegError as error:
        if not begun:
            raise VideoError(f"{path} is damaged ({error}): copy or download the video again") from error


def _count(container: Any, stream: Any, path: Path) -> int:
    """Frames of a container that does not say how many it holds."""
    return sum(1 for _ in _decoded(container, stream, path))
