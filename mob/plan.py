"""One forward pass through a pruned decoder, as tensors: which tokens remain, and the short mask, positions and cache.

Two coordinates. A *full* position counts tokens as if nothing had been dropped: layer 0 of the cache, the attention
mask that the model built and the positions of new tokens all use it. A *short* layer holds fewer tokens; ``Short``
says which, and a ``Cut`` says which tokens of the current pass a layer still sees.

Everything is looked up by layer, so a layer that runs again (gradient checkpointing) finds what it found before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mob.spans import Spans
from mob.tensors import expand, merge, on_device, take


@dataclass(frozen=True)
class Short:
    """Contents of the cache in layers ``first_layer`` and up (to the next Short).

    Attributes:
        kept: (B, M) full positions of the first M entries, -1 for padding.
        shift: full minus short position of every later entry.
        padded: whether ``kept`` holds any -1.
    """

    first_layer: int
    kept: Tensor
    shift: int
    padded: bool

    def columns(self, length: int) -> Tensor:
        """Full positions of ``length`` entries, int64 (B, length), -1 for padding."""
        batch, known = self.kept.shape
        later = torch.arange(known, max(length, known), device=self.kept.device) + self.shift
        return torch.cat([self.kept, later.expand(batch, -1)], 1)[:, :length]


@dataclass(frozen=True)
class Cut:
    """From ``layer`` on the pass holds ``rows``.

    Attributes:
        rows: (B, S) tokens of the pass, -1 for padding on the left.
        order: (B, S) the same as places in what the layer before saw; padding points to any place.
        into: where tokens are merged, for each token that arrives the place of the one it becomes part of, -1 for none.
    """

    layer: int
    rows: Tensor
    order: Tensor
    into: Tensor | None = None

    def apply(self, hidden: Tensor) -> Tensor:
        """What is left of the hidden states that arrive."""
        return take(hidden if self.into is None else merge(hidden, self.into), self.order)


@dataclass
class Plan:
    """Travels through one forward pass as a keyword argument.

    Attributes:
        length: tokens of this pass, T.
        past: full length before it.
        shorts: what the cache holds per layer range, ascending; updated when a stage selects.
        spans, stages: what to prune, and where; no stages in a pass that only continues.
        cuts: what has been dropped so far, ascending by layer.
        notes: what entered the layers that a later stage asks about, by layer.
        whole: where a stage before the decoder has made the prompt shorter in this pass: the places of what is left,
            and the length of the input.
        owner: the pruning that began the pass; the hooks of every nested pruning leave the work to it.
    """

    length: int
    past: int
    shorts: tuple[Short, ...] = ()
    spans: Spans | None = None
    stages: tuple[Any, ...] = ()
    cuts: tuple[Cut, ...] = ()
    notes: dict[int, Any] = field(default_factory=dict)
    whole: tuple[Tensor, int] | None = None
    owner: Any = None
    _before: tuple[Short, ...] = ()
    _memo: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._before = self.shorts

    def short(self, layer: int) -> Short | None:
        """The cache contents of a layer, None where it is full."""
        return _at(self.shorts, layer, "first_layer")

    def cut(self, layer: int) -> Cut | None:
        """The cut that decides what a layer sees, None where it sees the whole pass."""
        return _at(self.cuts, layer, "layer")

    def at(self, layer: int) -> Cut | None:
        """The cut that was made at a layer, None where there is none (yet)."""
        return next((cut for cut in self.cuts if cut.layer == layer), None)

    def seen(self, per_token: Tensor, layer: int) -> Tensor:
        """A (B, T) bool of the pass, in the tokens that arrive at the entry of ``layer``: (B, S)."""
        cut = self.cut(layer - 1)
        if cut is None:
            return per_token
        rows = cut.rows.to(per_token.device)
        return per_token.gather(1, rows.clamp_min(0)) & (rows >= 0)

    def drop(self, layer: int, keep: Tensor, counts: list[int], into: Tensor | None = None) -> Cut:
        """From ``layer`` on only ``keep`` remains, bool (B, S); ``counts`` are its row sums, known on the host, and
        ``into`` says what is merged (see ``Cut``).

        Rows are padded on the left; their order is preserved.
        """
        size = max(counts)
        order = keep.to(torch.uint8).sort(dim=1, stable=True).indices[:, -size:]
        missing = size - on_device(counts, keep.device)
        padding = torch.arange(size, device=keep.device) < missing[:, None]
        before = self.cut(layer - 1)
        rows = order if before is None else before.rows.gather(1, order)
        cut = Cut(layer, rows.masked_fill(padding, -1), order, into)
        self.cuts = (*self.cuts, cut)
        self.shorts = self._shorts_after(cut, uneven=min(counts) < size)
        return cut

    def _shorts_after(self, cut: Cut, uneven: bool) -> tuple[Short, ...]:
        """Cache contents once this pass is written: layers from the cut on receive its rows only."""
        after = [s for s in self.shorts if s.first_layer < cut.layer]
        new = torch.where(cut.rows >= 0, cut.rows + self.past, -1)
        for start in sorted({cut.layer, *(s.first_layer for s in self._before if s.first_layer > cut.layer)}):
            old = _at(self._before, start, "first_layer")
            kept = torch.cat([self._columns_before(old, len(new), new.device), new], 1)
            shift = self.past + self.length - kept.shape[1]
            after.append(Short(start, kept, shift, uneven or (old is not None and old.padded)))
        return tuple(after)

    def _columns_before(self, old: Short | None, batch: int, device: torch.device) -> Tensor:
        """Full positions of what a layer held before this pass, (B, M)."""
        if old is not None:
            return old.columns(self.past - old.shift)
        return torch.arange(self.past, device=device).expand(batch, -1)

    def shorten(self, layer: int, kwargs: dict[str, Any], flash: bool) -> dict[str, Any]:
        """The layer's keyword arguments, cut to what the layer sees and holds."""
        short, cut = self.short(layer), self.cut(layer)
        if short is None and cut is None:
            return kwargs
        kwargs = dict(kwargs)
        if short is not None and "attention_mask" in kwargs:
            cache = kwargs.get("past_key_values")
            kwargs["attention_mask"] = self._once(
                ("mask", short.first_layer, None if cut is None else cut.layer),
                kwargs["attention_mask"],
                lambda mask: self._short_mask(layer, short, cut, mask, cache, flash),
            )
        if cut is not None:
            for name, gather in PER_TOKEN.items():
                if kwargs.get(name) is not None:
                    kwargs[name] = self._once((name, cut.layer), kwargs[name], partial(gather, rows=cut.rows))
            if flash:  # gaps in the positions would look like packed sequences to the flash kernels
                kwargs["position_ids"] = None
        return kwargs

    def _once(self, key: tuple, value: Any, make: Callable[[Any], Any]) -> Any:
        """``make(value)``, made once: all layers get the same objects from the model, one per kind of attention."""
        made = self._memo.setdefault(key, [])
        for given, result in made:
            if given is value:  # not by id(value): torch.compile would guard on it, and compile every token anew
                return result
        made.append((value, make(value)))
        return made[-1][1]

    def _short_mask(self, layer: int, short: Short, cut: Cut | None, mask: Any, cache: Any, flash: bool) -> Any:
        """The mask that the model built, reduced to the rows and columns of a short layer.

        Selecting keeps whatever the mask says (padding, custom patterns, static caches); only where the model needed
        none and padding has appeared since, one is made.
        """
        if cache is None:
            length = short.kept.shape[1]
        else:
            length = cache.get_mask_sizes(self.length if cut is None else cut.rows.shape[1], layer)[0]
        columns = short.columns(length)
        if isinstance(mask, Tensor):
            columns = columns.to(mask.device)
        if mask is None:
            return self._new_mask(columns, cut, flash) if short.padded else None
        if not isinstance(mask, Tensor) or mask.ndim not in (2, 4):
            raise ValueError(
                f"cannot prune with an attention mask of type {type(mask).__name__}: load the model with "
                "attn_implementation='sdpa', 'eager' or a flash-attention implementation"
            )
        batch, width = columns.shape
        outside = (columns < 0) | (columns >= mask.shape[-1])
        index = columns.clamp(0, mask.shape[-1] - 1)
        if mask.ndim == 2:
            return mask.gather(1, index).masked_fill(outside, 0)
        mask = mask.expand(batch, -1, -1, -1)
        if cut is not None:
            rows = cut.rows.to(mask.device).clamp_min(0)[:, None, :, None]
            mask = mask.gather(2, rows.expand(-1, mask.shape[1], -1, mask.shape[-1]))
        mask = mask.gather(3, index[:, None, None].expand(-1, mask.shape[1], mask.shape[2], width))
        blocked = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
        return mask.masked_fill(outside[:, None, None], blocked)

    def _new_mask(self, columns: Tensor, cut: Cut | None, flash: bool) -> Tensor:
        """Causal mask over full positions: bool (B, 1, S, C), or (B, C) of what is real for flash attention."""
        real = columns >= 0
        if flash:
            return real
        if self.length == 1:  # a decoded token sees all that is there (and its plan does not count the past)
            return real[:, None, None, :]
        rows = torch.arange(self.length, device=columns.device)[None] if cut is None else cut.rows
        causal = columns[:, None, :] <= (rows + self.past)[:, :, None]
        return (causal & real[:, None, :])[:, None]

    def expand(self, hidden: Tensor, layer: int) -> Tensor:
        """What ``layer`` gave, brought to the length of the model's input: (B, S, d) -> (B, T, d)."""
        cut = self.cut(layer)
        if cut is not None:
            hidden = expand(hidden, cut.rows, self.length)
        return hidden if self.whole is None else expand(hidden, *self.whole)


def _at(ascending: tuple, layer: int, name: str) -> Any:
    """The last entry whose ``name`` is at most ``layer``, None if there is none."""
    found = [entry for entry in ascending if getattr(entry, name) <= layer]
    return found[-1] if found else None


def _gather_embeddings(value: Any, rows: Tensor) -> Any:
    """Rows of (cos, sin), each (B or 1, T, D).

    Gathered, never computed again: kept tokens keep their original, also multimodal, positions.
    """
    if isinstance(value, tuple):
        return tuple(_gather_embeddings(part, rows) for part in value)
    index = rows.to(value.device).clamp_min(0)[..., None].expand(-1, -1, value.shape[-1])
    return value.expand(len(rows), -1, -1).gather(1, index)


def _gather_numbers(value: Tensor, rows: Tensor) -> Tensor:
    """Entries of a number per token: (B or 1, T), or multimodal positions (parts, B or 1, T)."""
    parts = value.shape[:-2]
    index = rows.to(value.device).clamp_min(0).expand(*parts, -1, -1)
    return value.expand(*parts, len(rows), -1).gather(-1, index)


# What layers are handed that has an entry for every token, besides masks.
PER_TOKEN = {
    "position_embeddings": _gather_embeddings,
    "position_ids": _gather_numbers,
    "moe_mm_token_type_ids": _gather_numbers,  # ERNIE 4.5 VL: whose experts
}
