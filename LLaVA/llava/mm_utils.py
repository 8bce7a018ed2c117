"""Between the outside world and the model: cutting pictures to size, and tokenising around them.

Sizes are (width, height) in pixels throughout, as PIL has them. Reading pictures is ``mob.media``'s, named here too
because users of the original look for it here.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from PIL import Image
from transformers import StoppingCriteria

from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX
from mob.media import MAX_IMAGE_PIXELS, ImageError, Size, load_image, load_image_from_base64, load_images  # noqa: F401

MAX_ASPECT = 8  # longer pictures lose their ends before the short side is resized and the middle cropped


# ---------------------------------------------------------------------------------------------------------------
# Cutting pictures to size


def select_best_resolution(original_size: Size, possible_resolutions: Iterable[Size]) -> Size:
    """The resolution that keeps most of the picture's pixels; of equals the one that wastes least, then the first."""
    width, height = original_size

    def merit(resolution: Size) -> tuple[int, int]:
        target_width, target_height = resolution
        scale = min(target_width / width, target_height / height)
        # Truncated, and capped: enlarging adds no detail.
        effective = min(int(width * scale) * int(height * scale), width * height)
        return effective, effective - target_width * target_height

    resolutions = [(int(w), int(h)) for w, h in possible_resolutions]
    if not resolutions:
        raise ValueError("no resolutions to choose from: set image_grid_pinpoints in the model's config")
    return max(resolutions, key=merit)


def resize_and_pad_image(image: Image.Image, target_resolution: Size) -> Image.Image:
    """The picture enlarged or shrunk to fit, aspect kept, centred on black. Returns exactly ``target_resolution``."""
    width, height = image.size
    target_width, target_height = target_resolution
    scale_w, scale_h = target_width / width, target_height / height
    if scale_w < scale_h:
        fitted = target_width, min(math.ceil(height * scale_w), target_height)
    else:
        fitted = min(math.ceil(width * scale_h), target_width), target_height
    canvas = Image.new("RGB", (target_width, target_height))
    canvas.paste(image.resize(fitted), ((target_width - fitted[0]) // 2, (target_height - fitted[1]) // 2))
    return canvas


def divide_to_patches(image: Image.Image, patch_size: int) -> list[Image.Image]:
    """Square crops of ``patch_size`` pixels, row by row. ValueError where they do not cover the picture exactly."""
    columns, rows = _tiling(image.size, patch_size)
    corners = [(x * patch_size, y * patch_size) for y in range(rows) for x in range(columns)]
    return [image.crop((x, y, x + patch_size, y + patch_size)) for x, y in corners]


def get_anyres_image_grid_shape(image_size: Size, grid_pinpoints: str | Sequence[Size], patch_size: int) -> Size:
    """(tiles across, tiles down) that ``process_anyres_image`` cuts a picture of ``image_size`` into.

    ``patch_size`` is the side of a tile (the vision tower's input), not of a ViT patch.
    """
    return _tiling(select_best_resolution(image_size, read_pinpoints(grid_pinpoints)), patch_size)


def process_anyres_image(image: Image.Image, processor: Any, grid_pinpoints: str | Sequence[Size]) -> torch.Tensor:
    """[1 + T, 3, H, W]: the whole picture squeezed into one square view, then its T tiles row by row."""
    image = image.convert("RGB")
    resolution = select_best_resolution(image.size, read_pinpoints(grid_pinpoints))
    tiles = divide_to_patches(resize_and_pad_image(image, resolution), _tile_side(processor))
    side = _view_side(processor)
    return torch.stack(list(_pixels([image.resize((side, side)), *tiles], processor)))


def expand2square(pil_img: Image.Image, background_color: Any) -> Image.Image:
    """The picture centred on a square of ``background_color``; a square picture is returned as it is."""
    width, height = pil_img.size
    if width == height:
        return pil_img
    side = max(width, height)
    if side * side > MAX_IMAGE_PIXELS:
        raise ImageError(f"a {width} x {height} picture is too long to pad to a square: crop or shrink it first")
    square = Image.new(pil_img.mode, (side, side), background_color)
    square.paste(pil_img, ((side - width) // 2, (side - height) // 2))
    return square


def process_images(
    images: Sequence[Image.Image], image_processor: Any, model_cfg: Any
) -> torch.Tensor | list[torch.Tensor]:
    """Model inputs by ``model_cfg.image_aspect_ratio``; one tensor when all shapes agree, else a list.

    "pad": [B, 3, H, W] of pictures squared with the processor's mean colour. "anyres" and "anyres_max_*": per picture
    [1 + T, 3, H, W]. Anything else: [B, 3, H, W], cropped as the processor sees fit.
    """
    aspect = getattr(model_cfg, "image_aspect_ratio", None) or ""
    if getattr(image_processor, "image_grid_pinpoints", None):  # transformers' own, which cuts tiles itself
        return image_processor(images, return_tensors="pt")["pixel_values"]
    if aspect == "pad":
        mean = tuple(int(channel * 255) for channel in image_processor.image_mean)
        squares = [expand2square(image.convert("RGB"), mean) for image in images]
        return _stack_if_equal([_pixels([square], image_processor)[0] for square in squares])
    if aspect == "anyres" or aspect.startswith("anyres_max"):
        pinpoints = read_pinpoints(model_cfg.image_grid_pinpoints)
        if hasattr(model_cfg, "text_config"):  # transformers has (height, width), as nobody else
            pinpoints = [(width, height) for height, width in pinpoints]
        return _stack_if_equal([process_anyres_image(image, image_processor, pinpoints) for image in images])
    middles = [_without_far_ends(image, image_processor) for image in images]
    return image_processor(middles, return_tensors="pt")["pixel_values"]


def _without_far_ends(image: Image.Image, image_processor: Any) -> Image.Image:
    """The middle of a very long picture, which is all that a centre crop looks at.

    The processor resizes first and crops then: a 20000 x 1 picture would take gigabytes on the way.
    """
    limit = MAX_ASPECT * min(image.size)
    if not getattr(image_processor, "do_center_crop", False) or max(image.size) <= limit:
        return image
    width, height = (min(side, limit) for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def seen_box(size: Size, image_processor: Any, model_cfg: Any) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of what the model sees of a picture, in its pixels; beyond the edges is padding."""
    width, height = size
    if getattr(model_cfg, "image_grid_pinpoints", None):
        return (0.0, 0.0, float(width), float(height))  # squeezed into one view, and cut into tiles without loss
    if getattr(model_cfg, "image_aspect_ratio", None) == "pad" or getattr(image_processor, "do_pad", False):
        side = max(size)
    elif getattr(image_processor, "do_center_crop", False):
        side = min(size) * _tile_side(image_processor) / _view_side(image_processor)
    else:
        return (0.0, 0.0, float(width), float(height))
    left, top = (width - side) / 2, (height - side) / 2
    return (left, top, left + side, top + side)


def _pixels(images: list[Image.Image], processor: Any) -> Any:
    """One [3, H, W] tensor per picture."""
    preprocess = getattr(processor, "preprocess", processor)
    return preprocess(images, return_tensors="pt")["pixel_values"]


def _stack_if_equal(tensors: list[torch.Tensor]) -> torch.Tensor | list[torch.Tensor]:
    return torch.stack(tensors) if len({tensor.shape for tensor in tensors}) == 1 else tensors


def _tiling(size: Size, side: int) -> Size:
    (columns, spare_x), (rows, spare_y) = divmod(size[0], side), divmod(size[1], side)
    if spare_x or spare_y:
        raise ValueError(
            f"{side}-pixel tiles do not fill {size[0]} x {size[1]}: use sides that are multiples of {side}"
        )
    return columns, rows


def read_pinpoints(grid_pinpoints: str | Sequence[Size]) -> Sequence[Size]:
    """A list of sizes, also from the text of one. ValueError where there is none."""
    if grid_pinpoints is None:
        raise ValueError("pictures are cut into tiles, but the config has no image_grid_pinpoints: add them")
    if not isinstance(grid_pinpoints, str):
        return grid_pinpoints
    try:
        return [(int(width), int(height)) for width, height in ast.literal_eval(grid_pinpoints)]
    except (ValueError, SyntaxError, TypeError) as error:
        raise ValueError(f"image_grid_pinpoints {grid_pinpoints!r} is not like [[336, 672], [672, 336]]") from error


def _tile_side(processor: Any) -> int:
    return _side(getattr(processor, "crop_size", None) or processor.size)


def _view_side(processor: Any) -> int:
    return _side(processor.size)


def _side(size: Any) -> int:
    """CLIP sizes name a shortest edge, SigLIP sizes a height and a width, older ones are a bare number."""
    return size if isinstance(size, int) else size.get("shortest_edge") or size.get("height")


# ---------------------------------------------------------------------------------------------------------------
# Tokens and names


def tokenizer_image_token(
    prompt: str, tokenizer: Any, image_token_index: int = IMAGE_TOKEN_INDEX, return_tensors: str | None = None
) -> list[int] | torch.Tensor:
    """Token ids of a prompt, ``image_token_index`` standing where it says ``<image>``.

    The texts between are tokenised one by one, as in training, so each begins with whatever prefix the tokenizer
    writes; only the first keeps its BOS. Returns a list, or for "pt" a 1-D long tensor.
    """
    if return_tensors not in (None, "pt"):
        raise ValueError(f"return_tensors={return_tensors!r} is not supported: use 'pt', or None for a list")
    ids, *rest = (list(tokenizer(chunk).input_ids) for chunk in prompt.split(DEFAULT_IMAGE_TOKEN))
    adds_bos = _starts_with_bos(ids, tokenizer)
    for chunk in rest:
        ids.append(image_token_index)
        ids += chunk[1:] if adds_bos and _starts_with_bos(chunk, tokenizer) else chunk
    return ids if return_tensors is None else torch.tensor(ids, dtype=torch.long)


def _starts_with_bos(ids: list[int], tokenizer: Any) -> bool:
    return bool(ids) and ids[0] == tokenizer.bos_token_id


def get_model_name_from_path(model_path: str) -> str:
    """The last part of a path or hub id; "run_checkpoint-100" for the path "run/checkpoint-100"."""
    *parents, name = model_path.strip("/").split("/")
    return f"{parents[-1]}_{name}" if name.startswith("checkpoint-") and parents else name


class KeywordsStoppingCriteria(StoppingCriteria):
    """Stops generation once every row of the batch has produced one of the keywords.

    A row has when it ends in a keyword's ids, or when its last tokens decode to text that holds the keyword: a keyword
    may be tokenised differently inside a sentence. ``input_ids`` [B, L] is the prompt.
    """

    def __init__(self, keywords: Sequence[str], tokenizer: Any, input_ids: torch.Tensor) -> None:
        self.keywords = [keyword for keyword in keywords if keyword]  # an empty one, "" being in any text, stops all
        self.tokenizer = tokenizer
        self.keyword_ids = [self._ids(keyword) for keyword in self.keywords]
        self.max_keyword_len = max(map(len, self.keyword_ids), default=0)
        self.start_len = input_ids.shape[1]

    def _ids(self, keyword: str) -> list[int]:
        ids = list(self.tokenizer(keyword).input_ids)
        return ids[1:] if len(ids) > 1 and _starts_with_bos(ids, self.tokenizer) else ids

    def __call__(self, output_ids: torch.Tensor, scores: Any = None, **kwargs: Any) -> bool:
        """``output_ids`` [B, prompt + new], or [B, new] when generating from embeddings."""
        if output_ids.shape[1] < self.start_len:
            self.start_len = 0  # generating from embeddings: the prompt will not be among the ids
        return all(self._stops(row) for row in output_ids.tolist())

    def _stops(self, row: list[int]) -> bool:
        if any(row[-len(ids) :] == ids for ids in self.keyword_ids):
            return True
        recent = min(len(row) - self.start_len, self.max_keyword_len)
        text = self.tokenizer.decode(row[-recent:], skip_special_tokens=True) if recent > 0 else ""
        return any(keyword in text for keyword in self.keywords)
