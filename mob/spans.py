"""Where the visual tokens and the prompt tokens of each sample are, and which picture and grid cell a token shows.

The only file of ``mob`` that may know about model families.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

IMAGE_KEYS = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")


@dataclass(frozen=True)
class Spans:
    """Tokens of one forward pass, (B, T) bool on the model's device, and their counts on the host, one per sample.

    ``real``: not padding. ``visual``: picture or video tokens. ``prompt``: text tokens that say what is asked.
    """

    real: Tensor
    visual: Tensor
    prompt: Tensor
    real_counts: list[int]
    visual_counts: list[int]
    prompt_counts: list[int]


class Cell(NamedTuple):
    """Which picture of the sample a visual token shows, and where. Row and column are -1 where there is no grid."""

    image: int
    row: int
    column: int


def visual_token_ids(config: Any) -> list[int]:
    """Placeholder ids of pictures and videos that a model's config names."""
    ids = (getattr(config, key, None) for key in IMAGE_KEYS)
    return list(dict.fromkeys(i for i in ids if isinstance(i, int)))


def find_visual(config: Any, input_ids: Tensor | None, embeddings: Tensor | None, embed: torch.nn.Module) -> Tensor:
    """bool (B, T): placeholders by id, or, as transformers does, by embedding where only embeddings are given."""
    if input_ids is not None:
        return torch.isin(input_ids, torch.tensor(visual_token_ids(config), device=input_ids.device))
    found = torch.zeros(embeddings.shape[:2], dtype=torch.bool, device=embeddings.device)
    for token in visual_token_ids(config):
        row = embed(torch.tensor(token, device=embeddings.device))
        found = found | (embeddings == row.to(embeddings.dtype)).all(-1)
    return found


def find_real(mask: Tensor | None, visual: Tensor, past: int) -> Tensor:
    """bool (B, T): tokens of this pass that are not padding.

    ``mask`` is None (all real), 2D (B, past + T), or 4D as generate prepares it for static caches: what the last
    query may attend to.
    """
    if mask is None:
        return torch.ones_like(visual)
    if mask.ndim == 4:
        mask = mask[:, 0, -1].expand(visual.shape[0], -1)
        mask = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    elif mask.ndim != 2:
        raise ValueError(f"attention_mask of shape {tuple(mask.shape)}: give a (batch, length) mask of ones and zeros")
    return mask[:, past : past + visual.shape[1]].bool()


def find_spans(visual: Tensor, real: Tensor, answer: Tensor | None, first_pass: bool) -> Spans:
    """Split the real tokens of a pass into visual and prompt.

    The prompt is the text after the last visual token: the question and the role tail. Where there is none, it is all
    text of the pass but the very first token (a beginning-of-sequence mark). ``answer`` (B, T) marks tokens that
    labels ask to be predicted: a selection must not see them.
    """
    visual = visual & real
    text = real & ~visual
    if answer is not None:
        text = text & ~answer
    position = torch.arange(visual.shape[1], device=visual.device)
    last = torch.where(visual, position, -1).amax(1, keepdim=True)
    after = text & (position > last)
    before = text.clone()
    if first_pass:
        first = torch.where(real, position, visual.shape[1]).amin(1, keepdim=True)
        before &= position != first
    prompt = torch.where(after.any(1, keepdim=True), after, before)
    counts = torch.stack([real.sum(1), visual.sum(1), prompt.sum(1)]).tolist()
    return Spans(real, visual, prompt, *counts)


def grid_side(config: Any) -> int | None:
    """Side of the square grid of visual tokens that one picture becomes, where the config fixes it."""
    vision = getattr(config, "vision_config", None)
    size, patch = getattr(vision, "image_size", None), getattr(vision, "patch_size", None)
    if not isinstance(size, int) or not isinstance(patch, int):
        return None
    return size // patch


def cells(config: Any, visual_row: Tensor) -> list[Cell]:
    """Picture, row and column of every visual token of one sample, in sequence order; ``visual_row`` is bool (T,).

    A run of consecutive tokens is one picture, or several where its length is a multiple of the picture grid.
    """
    positions = visual_row.nonzero()[:, 0].tolist()
    side, out, image = grid_side(config), [], -1
    for run in _runs(positions):
        if side and run % side**2 == 0:
            out += [Cell(image + 1 + i // side**2, i % side**2 // side, i % side) for i in range(run)]
            image += run // side**2
        else:
            image += 1
            out += [Cell(image, -1, -1)] * run
    return out


def _runs(positions: list[int]) -> list[int]:
    """Lengths of the runs of consecutive integers."""
    lengths: list[int] = []
    for index, position in enumerate(positions):
        if index and position == positions[index - 1] + 1:
            lengths[-1] += 1
        else:
            lengths.append(1)
    return lengths
