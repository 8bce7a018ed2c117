"""One forward pass through a pruned decoder, as tensors: which tokens remain, and the short mask, positions and cache.

Two coordinates. A *full* position counts tokens as if nothing had been dropped: layer 0 of the cache, the attention
mask that the model built and the positions of new tokens all use it. A *short* layer holds fewer tokens; ``Short``
says which. Rows of the current pass that a layer sees are ``Plan.rows``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mob.spans import Spans


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


@dataclass
class Plan:
    """Travels through one forward pass as a keyword argument.

    Attributes:
        length: tokens of this pass, T.
        past: full length before it.
        shorts: what the cache holds per layer range, ascending; updated when a stage selects.
        spans, stages: what to prune, and where; no stages in a pass that only continues.
        rows: (B, S) the tokens of this pass that the current layer sees, -1 for padding; None = all.
    """

    length: int
    past: int
    shorts: tuple[Short, ...] = ()
    spans: Spans | None = None
    stages: tuple[Any, ...] = ()
    rows: Tensor | None = None
    _before: tuple[Short, ...] = ()
    _memo: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._before = self.shorts

    def short(self, layer: int) -> Short | None:
        """The cache contents of a layer, None where it is full."""
        return _at(self.shorts, layer)

    def in_rows(self, per_token: Tensor) -> Tensor:
        """A (B, T) bool of the pass, in the tokens that the current layer sees: (B, S)."""
        if self.rows is None:
            return per_token
        return per_token.gather(1, self.rows.clamp_min(0)) & (self.rows >= 0)

    def drop(self, layer: int, keep: Tensor, counts: list[int]) -> Tensor:
        """From ``layer`` on only ``keep`` remains, bool (B, S); ``counts`` are its row sums, known on the host.

        Returns int64 (B, S') indices into the S tokens so far. Rows are padded on the left, order is preserved.
        """
        size = max(counts)
        order = keep.to(torch.uint8).sort(dim=1, stable=True).indices[:, -size:]
        missing = size - torch.tensor(counts, device=keep.device)
        padding = torch.arange(size, device=keep.device) < missing[:, None]
        rows = order if self.rows is None else self.rows.gather(1, order)
        self.rows = rows.masked_fill(padding, -1)
        self.shorts = self._shorts_after(layer, uneven=min(counts) < size)
        self._memo.clear()
        return order.masked_fill(padding, 0)

    def _shorts_after(self, layer: int, uneven: bool) -> tuple[Short, ...]:
        """Cache contents once this pass is written: layers from ``layer`` on receive ``rows`` only."""
        after = [s for s in self.shorts if s.first_layer < layer]
        for start in sorted({layer, *(s.first_layer for s in self._before if s.first_layer > layer)}):
            old = _at(self._before, start)
            new = torch.where(self.rows >= 0, self.rows + self.past, -1)
            kept = torch.cat([self._columns_before(old), new], 1)
            shift = self.past + self.length - kept.shape[1]
            after.append(Short(start, kept, shift, uneven or (old is not None and old.padded)))
        return tuple(after)

    def _columns_before(self, old: Short | None) -> Tensor:
        """Full positions of what a layer held before this pass, (B, M)."""
        if old is not None:
            return old.columns(self.past - old.shift)
        return torch.arange(self.past, device=self.rows.device).expand(self.rows.shape[0], -1)

    def shorten(self, layer: int, kwargs: dict[str, Any], flash: bool) -> dict[str, Any]:
        """The layer's keyword arguments, cut to what the layer sees and holds."""
        short = self.short(layer)
        if short is None and self.rows is None:
            return kwargs
        kwargs = dict(kwargs)
        if "attention_mask" in kwargs and short is not None:
            mask = kwargs["attention_mask"]
            # Every layer gets the same mask object (one per kind of attention), so it is cut once per pass.
            key = ("mask", short.first_layer, id(mask))
            if key not in self._memo:
                self._memo[key] = (mask, self._short_mask(layer, short, mask, kwargs.get("past_key_values"), flash))
            kwargs["attention_mask"] = self._memo[key][1]
        if self.rows is not None:
            for name, cut in (("position_embeddings", self._short_rotary), ("position_ids", self._short_positions)):
                if kwargs.get(name) is not None:
                    value = kwargs[name]
                    if (name, id(value)) not in self._memo:
                        self._memo[name, id(value)] = (value, cut(value))
                    kwargs[name] = self._memo[name, id(value)][1]
            if flash:  # gaps in the positions would look like packed sequences to the flash kernels
                kwargs["position_ids"] = None
        return kwargs

    def _short_rotary(self, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        """(cos, sin) of (B or 1, T, D) -> (B, S, D). Gathered, so kept tokens keep their (multimodal) positions."""
        index = self.rows.clamp_min(0)[..., None]
        batch = index.shape[0]
        return tuple(t.expand(batch, -1, -1).gather(1, index.expand(-1, -1, t.shape[-1])) for t in pair)

    def _short_positions(self, positions: Tensor) -> Tensor:
        """(B or 1, T) -> (B, S)."""
        return positions.expand(self.rows.shape[0], -1).gather(1, self.rows.clamp_min(0))

    def _short_mask(self, layer: int, short: Short, mask: Any, cache: Any, flash: bool) -> Any:
        """The mask that the model built, reduced to the rows and columns of a short layer.

        Selecting keeps whatever the mask says (padding, custom patterns, static caches); only where the model needed
        none and padding has appeared since, one is made.
        """
        length = self._key_length(layer, short, cache)
        columns = short.columns(length)
        if mask is None:
            return self._new_mask(columns, flash) if short.padded else None
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
        if self.rows is not None:
            rows = self.rows.clamp_min(0)[:, None, :, None]
            mask = mask.gather(2, rows.expand(-1, mask.shape[1], -1, mask.shape[-1]))
        mask = mask.gather(3, index[:, None, None].expand(-1, mask.shape[1], mask.shape[2], width))
        blocked = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
        return mask.masked_fill(outside[:, None, None], blocked)

    def _key_length(self, layer: int, short: Short, cache: Any) -> int:
        """Keys that the layer will attend to in this pass."""
        if cache is None:
            return short.kept.shape[1]
        return cache.get_mask_sizes(self.length if self.rows is None else self.rows.shape[1], layer)[0]

    def _new_mask(self, columns: Tensor, flash: bool) -> Tensor:
        """Causal mask over full positions: bool (B, 1, S, C), or (B, C) of what is real for flash attention."""
        real = columns >= 0
        if flash:
            return real
        rows = torch.arange(self.length, device=columns.device)[None] if self.rows is None else self.rows
        causal = columns[:, None, :] <= (rows + self.past)[:, :, None]
        return (causal & real[:, None, :])[:, None]

    def expand(self, hidden: Tensor) -> Tensor:
        """(B, S, d) -> (B, T, d): a dropped token reads the nearest kept one before it, so that labels, logits of the
        last token and log-likelihoods keep their places."""
        batch, size, width = hidden.shape
        place = torch.arange(size, device=hidden.device).expand(batch, -1).masked_fill(self.rows < 0, -1)
        source = hidden.new_full((batch, self.length + 1), -1, dtype=torch.int64)
        # Padding rows all write to the spare last entry, which is cut off.
        source = source.scatter(1, self.rows.masked_fill(self.rows < 0, self.length), place)[:, : self.length]
        source = source.cummax(1).values.clamp_min(0)
        return hidden.gather(1, source[..., None].expand(-1, -1, width))


def _at(shorts: tuple[Short, ...], layer: int) -> Short | None:
    """The entry that covers a layer, of an ascending tuple."""
    found = [short for short in shorts if short.first_layer <= layer]
    return found[-1] if found else None
