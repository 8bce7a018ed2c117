"""Anything that may be a picture becomes upright RGB: files, URLs, PIL pictures, numpy arrays, torch tensors.

How an array is read:

* Shape: (3, H, W) or (H, W, 3), told apart by which end is 3; both ends 3 is an error. Without a 3, an end of 1 is
  grey, else an end of 4 is RGBA. (H, W) is grey. One more dimension in front is a batch. RGBA shows on white.
* Values: integers are 0..255. Floats are 0..1 if no value of the array (or batch) is above 1, and 0..255 otherwise;
  they are rounded to whole levels. A thousandth outside 0..1 is clipped. Other negative values, a largest value between
  1.001 and 2 (an overshoot, or nearly black?), NaN and infinity are errors, because nothing says what they mean.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from mob.media import ImageError, load_image, upright_rgb

SLACK = 1e-3  # resized pictures leave 0..1 by a rounding error
Source = Any  # str, path, PIL picture, numpy array or torch tensor


def is_array(value: Any) -> bool:
    return isinstance(value, (np.ndarray, torch.Tensor))


def is_single(value: Any) -> bool:
    """Whether a value is one picture rather than several (a batch counts as several)."""
    return isinstance(value, (str, os.PathLike, Image.Image)) or (is_array(value) and value.ndim <= 3)


def to_picture(source: Source) -> Image.Image:
    """One picture as upright RGB.

    Raises:
        ValueError: it cannot be read, or an array does not say what it holds; one line with the remedy.
    """
    if isinstance(source, Image.Image):
        try:
            return upright_rgb(source)
        except OSError as error:
            raise ImageError(f"the picture is damaged ({error}): open the file again") from error
    if isinstance(source, (str, os.PathLike)):
        text = os.fspath(source)
        return load_image(text[7:] if text[:7].lower() == "file://" else text)
    if is_array(source):
        if source.ndim > 3:
            raise ValueError(f"an array of shape {tuple(source.shape)} is not one picture: give (3, H, W) or (H, W, 3)")
        return _picture(levels(source))
    raise ValueError(
        f"a picture cannot be a {type(source).__name__}: give a path, a URL, a PIL picture, or an array (3, H, W)"
    )


def to_pictures(source: Source | Sequence[Source]) -> list[Image.Image]:
    """One picture, a batch (B, 3, H, W) or (B, H, W, 3), or a list of these, as a list of upright RGB pictures."""
    if is_array(source) and source.ndim == 4:
        return [_picture(one) for one in levels(source)]
    if isinstance(source, (list, tuple)):
        if not source:
            raise ValueError("the list of pictures is empty: give at least one, or image=None for text alone")
        return [picture for one in source for picture in to_pictures(one)]
    return [to_picture(source)]


def levels(array: np.ndarray | torch.Tensor) -> np.ndarray:
    """The values as uint8 levels 0..255, in the same shape; see the top of this file for how values are read."""
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        array = (array.float() if array.is_floating_point() else array).numpy()
    if array.size == 0:
        raise ValueError(f"an array of shape {array.shape} is empty: give a picture with at least one pixel")
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind not in "iuf":
        raise ValueError(f"an array of {array.dtype} is not a picture: give uint8 (0..255) or floats (0..1)")
    if not np.isfinite(array).all():
        raise ValueError("the array holds NaN or infinity: a picture needs numbers, 0..1 or 0..255")
    low, high = float(array.min()), float(array.max())
    whole = array.dtype.kind != "f"
    if low < (0 if whole else -SLACK):
        raise ValueError(
            f"the array holds negative values (down to {low:.3g}), as normalised pixels do: give the pixels from "
            "before normalisation (0..1 or 0..255), or processed patches as (pixel_values, image_grid_thw)"
        )
    if high > 255:
        raise ValueError(f"the array holds values up to {high:.5g}: scale the picture to 0..1 or 0..255")
    if whole:
        return array.astype(np.uint8)
    if 1 + SLACK < high < 2:
        raise ValueError(
            f"the largest value of the array is {high:.4g}, too much for 0..1 and little for 0..255: clip it to 0..1, "
            "or give 0..255 as uint8"
        )
    scale = 255.0 if high <= 1 + SLACK else 1.0
    return np.clip(np.rint(array.astype(np.float64) * scale), 0, 255).astype(np.uint8)


def channels_last(array: np.ndarray) -> np.ndarray:
    """(..., C, H, W) or (..., H, W, C) as (..., H, W, C) with C of 1, 3 or 4. ValueError where both ends fit."""
    for channels in (3, 1, 4):
        first, last = array.shape[-3] == channels, array.shape[-1] == channels
        if first and last:
            raise ValueError(
                f"an array of shape {array.shape} may have its channels first or last: give it as a PIL picture"
            )
        if last:
            return array
        if first:
            return np.moveaxis(array, -3, -1)
    raise ValueError(
        f"an array of shape {array.shape} is not a picture: give (H, W), (3, H, W) or (H, W, 3), or a batch of such"
    )


def _picture(array: np.ndarray) -> Image.Image:
    """uint8 (H, W), (C, H, W) or (H, W, C) -> RGB."""
    if array.ndim < 2:
        raise ValueError(f"an array of shape {array.shape} is not a picture: give (H, W), (3, H, W) or (H, W, 3)")
    if array.ndim == 3:
        array = channels_last(array)
        array = array[..., 0] if array.shape[-1] == 1 else array
    return upright_rgb(Image.fromarray(np.ascontiguousarray(array)))


def as_mapping(source: Any) -> Mapping[str, Any] | None:
    """A dict or anything like it (the BatchFeature of a processor), else None."""
    return source if isinstance(source, Mapping) else None
