"""Small tensor moves that several stages share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def on_device(numbers: Sequence, device: torch.device) -> Tensor:
    """A tensor of numbers that the host knows. ``torch.tensor(numbers, device=device)`` would wait until the device has
    done all that it was asked to do before."""
    return torch.tensor(numbers).to(device, non_blocking=True)


def places_of(mask: Tensor, count: int) -> Tensor:
    """Where the True entries of each row are, ascending: bool (B, T) with at most ``count`` -> int64 (B, count)."""
    return mask.logical_not().to(torch.uint8).sort(dim=1, stable=True).indices[:, :count]


def take(rows: Tensor, index: Tensor) -> Tensor:
    """(B, T, d) and (B, n) -> (B, n, d)."""
    return rows.gather(1, index[..., None].expand(-1, -1, rows.shape[-1]))


def product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` in the dtype that they have, whether or not autocast is on."""
    with torch.autocast(a.device.type, enabled=False):
        return a @ b


def merge(rows: Tensor, into: Tensor) -> Tensor:
    """Rows (B, T, d) where some are means of several: ``into`` (B, T) is the row that a row is part of, -1 for none.

    A row that only it is part of stays as it is, to the bit. Sums are made in float32 at least: in float16 they would
    run over, and in bfloat16 lose most of their bits.
    """
    there = into >= 0
    index = into.clamp_min(0)
    size = torch.zeros_like(into).scatter_add(1, index, there.to(into.dtype))
    wide = rows.to(torch.promote_types(rows.dtype, torch.float32)).masked_fill(~there[..., None], 0)
    total = _sums(wide, index) if rows.device.type == "cpu" else _products(wide, index, there)
    return torch.where(size[..., None] > 1, (total / size.clamp_min(1)[..., None]).to(rows.dtype), rows)


def _sums(rows: Tensor, index: Tensor) -> Tensor:
    """Rows added where they belong, in their order."""
    return torch.zeros_like(rows).scatter_add(1, index[..., None].expand_as(rows), rows)


def _products(rows: Tensor, index: Tensor, there: Tensor) -> Tensor:
    """The same as a product of matrices: on accelerators ``scatter_add`` adds in no fixed order."""
    place = torch.arange(rows.shape[1], device=rows.device)
    return product(((index[:, None] == place[:, None]) & there[:, None]).to(rows.dtype), rows)


def expand(hidden: Tensor, rows: Tensor, length: int) -> Tensor:
    """What short layers gave, (B, S, d) -> (B, length, d).

    A dropped token reads the nearest kept one before it, so that labels, logits of the last token and log-likelihoods
    keep their places. ``rows`` (B, S) are the places of the tokens that are left, -1 for padding on the left.
    """
    rows = rows.to(hidden.device)
    batch, size = rows.shape
    place = torch.arange(size, device=hidden.device).expand(batch, -1).masked_fill(rows < 0, -1)
    source = hidden.new_full((batch, length + 1), -1, dtype=torch.int64)
    # Padding rows all write to the spare last entry, which is cut off.
    source = source.scatter(1, rows.masked_fill(rows < 0, length), place)[:, :length]
    return take(hidden, source.cummax(1).values.clamp_min(0))


def flat_features(output: Any) -> Tensor:
    """What an encoder gave for all its pictures, in order: (tokens, d). ValueError for another form of features."""
    if getattr(output, "pooler_output", None) is None:
        raise ValueError(
            "this model's encoder does not give one row for each visual token: use a rule within the decoder, such as "
            "method='mob'"
        )
    return torch.cat([one.flatten(0, -2) for one in output.pooler_output])
