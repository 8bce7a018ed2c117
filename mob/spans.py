"""Where the visual tokens and the prompt tokens of each sample are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mob.layout import IMAGE, VIDEO, Picture, arrange

# What model families call the placeholder ids of pictures and videos in their configs.
KEYS = {IMAGE: ("image_token_id", "image_token_index"), VIDEO: ("video_token_id", "video_token_index")}


@dataclass(frozen=True)
class Spans:
    """Tokens of one forward pass, (B, T) bool on the model's device, and what the host knows of them, per sample.

    ``real``: not padding. ``visual``: picture or video tokens. ``prompt``: text tokens that say what is asked.
    ``pictures``: layout of the visual tokens, picture by picture in sequence order. ``originals``: the same with
    newlines that are kept apart; ``seen``: what each token is (0: text), on the host.
    """

    real: Tensor
    visual: Tensor
    prompt: Tensor
    real_counts: list[int]
    visual_counts: list[int]
    prompt_counts: list[int]
    pictures: list[list[Picture]] = field(default_factory=list)
    originals: list[list[Picture]] = field(default_factory=list)
    seen: list[list[int]] = field(default_factory=list)


def visual_token_ids(config: Any) -> dict[int, int]:
    """Placeholder ids that a model's config names -> IMAGE or VIDEO."""
    found: dict[int, int] = {}
    for kind, names in KEYS.items():
        for token in (getattr(config, name, None) for name in names):
            if isinstance(token, int):
                found.setdefault(token, kind)
    return found


def find_kinds(config: Any, input_ids: Tensor | None, embeddings: Tensor | None, embed: torch.nn.Module) -> Tensor:
    """uint8 (B, T), 0 for text, IMAGE or VIDEO: placeholders by id, or, as transformers does, by embedding where only
    embeddings are given."""
    source = embeddings if input_ids is None else input_ids
    kinds = torch.zeros(source.shape[:2], dtype=torch.uint8, device=source.device)
    for token, kind in visual_token_ids(config).items():
        if input_ids is not None:
            here = input_ids == token
        else:
            row = embed(torch.tensor(token, device=embeddings.device))
            here = (embeddings == row.to(embeddings.dtype)).all(-1)
        kinds = kinds.masked_fill(here, kind)
    return kinds


def find_real(mask: Tensor | None, kinds: Tensor, past: int) -> Tensor:
    """bool (B, T): tokens of this pass that are not padding.

    ``mask`` is None (all real), 2D (B, past + T), or 4D as generate prepares it for static caches: what the last
    query may attend to.
    """
    if isinstance(mask, dict):  # a Qwen's, one for each kind of attention: there is only one kind
        (mask,) = mask.values()
    if mask is None:
        return torch.ones_like(kinds, dtype=torch.bool)
    if mask.ndim == 4:
        mask = mask[:, 0, -1].expand(kinds.shape[0], -1)
        mask = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    elif mask.ndim != 2:
        raise ValueError(f"attention_mask of shape {tuple(mask.shape)}: give a (batch, length) mask of ones and zeros")
    return mask[:, past : past + kinds.shape[1]].bool()


def find_spans(
    kinds: Tensor,
    real: Tensor,
    answer: Tensor | None,
    first_pass: bool,
    config: Any = None,
    given: dict[int, list[Picture]] | None = None,
    keep_newlines: bool = False,
) -> Spans:
    """Split the real tokens of a pass into visual and prompt, and find the pictures among the visual ones.

    The prompt is the text after the last visual token: the question and the role tail. Where there is none, it is all
    text of the pass but the very first token (a beginning-of-sequence mark).

    Args:
        kinds: uint8 (B, T) from ``find_kinds``; real: bool (B, T) from ``find_real``.
        answer: bool (B, T), tokens that labels ask to be predicted: a selection must not see them.
        given: pictures that the call describes, from ``mob.layout.declared``.
        keep_newlines: newline tokens of tiled pictures are neither pruned nor prompt.
    """
    kinds = kinds.masked_fill(~real, 0)
    visual, text = kinds > 0, real & (kinds == 0)
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
    seen, reals, prompts = torch.stack([kinds, real, prompt]).cpu()  # the one wait for the device
    tokens = seen.tolist()
    originals = pictures = arrange(config, tokens, given or {})
    if keep_newlines and (lines := _newlines(seen, pictures)) is not None:
        visual = visual & ~lines.to(visual.device)
        pictures = [[picture.without_newlines() for picture in row] for row in pictures]
    counts = reals.sum(1).tolist(), [sum(one.length for one in row) for row in pictures], prompts.sum(1).tolist()
    return Spans(real, visual, prompt, *counts, pictures, originals, tokens)


def _newlines(kinds: Tensor, pictures: list[list[Picture]]) -> Tensor | None:
    """bool (B, T): newline tokens; None where there are none. ``kinds`` is on the host."""
    lines = [[cell.row >= 0 > cell.column for one in row for cell in one.cells(0)] for row in pictures]
    if not any(map(any, lines)):
        return None
    return torch.zeros_like(kinds, dtype=torch.bool).masked_scatter(kinds > 0, torch.tensor(sum(lines, [])))
