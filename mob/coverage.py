"""Greedy maximum coverage (facility location): the token whose addition covers the rest best, again and again.

Similarities are integers, multiples of 2^-30, so that sums are exact in any order: a batch chooses what its samples
choose alone, and of equal gains the first token wins.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mob.tensors import places_of

GRID = 2**30
TAKEN, LAST = float("-inf"), -1.0
_CANDIDATES = 12  # columns that are brought up to date together


def on_grid(similar: Tensor) -> Tensor:
    """Similarities up to 1 as integers; negative ones cover nothing: int32 of the same shape."""
    return torch.round(similar.clamp_min(0) * GRID).to(torch.int32)


def cover(blocks: Sequence[Tensor], weights: Sequence[Tensor], K: int) -> Tensor:
    """K columns, ascending, int64 (B, K): each time the one that gains most, ties to the lowest index.

    A row of a block counts as covered as well as its best chosen column covers it, at first not at all. A column's gain
    is what it would add to that, over all rows, times its weight, summed over the blocks.

    Args:
        blocks: each int32 (B, R, N), from ``on_grid``: how well column j covers row i.
        weights: for each block (B, N) or (B, 1). Columns with a negative one in the first block come after all others.
    """
    size = blocks[0].shape[2]
    wide = torch.float32 if blocks[0].device.type == "mps" else torch.float64  # which holds sums of integers exactly
    weights = [weight.to(wide).expand(-1, size) for weight in weights]
    way = _lazily if blocks[0].device.type == "cpu" else _at_once
    return places_of(way(blocks, weights, K), K)


def _at_once(blocks: Sequence[Tensor], weights: Sequence[Tensor], K: int) -> Tensor:
    """All columns of all samples in every step, without a look at any number: bool (B, N)."""
    covered = [torch.zeros_like(block[..., 0]) for block in blocks]
    taken = torch.zeros_like(weights[0], dtype=torch.bool)
    for _ in range(K):
        more = [(block - best[..., None]).clamp_min(0).sum(1) for block, best in zip(blocks, covered, strict=True)]
        new = _worth(more, weights).masked_fill(taken, TAKEN).argmax(1, keepdim=True)
        taken = taken.scatter(1, new, True)
        columns = [block.gather(2, new[:, None].expand(-1, block.shape[1], -1))[..., 0] for block in blocks]
        covered = [torch.maximum(*pair) for pair in zip(covered, columns, strict=True)]
    return taken


def _lazily(blocks: Sequence[Tensor], weights: Sequence[Tensor], K: int) -> Tensor:
    """The same, sample by sample. Gains only ever shrink, so old ones are upper bounds (as in ``mob.farthest``)."""
    out = torch.zeros_like(weights[0], dtype=torch.bool)
    for row, taken in enumerate(out):
        _one([block[row].T.contiguous() for block in blocks], [weight[row] for weight in weights], K, taken)
    return out


def _one(columns: Sequence[Tensor], weights: Sequence[Tensor], K: int, taken: Tensor) -> None:
    """One sample's (N, R), (N,) and (N,), the last filled in."""
    covered = [torch.zeros_like(block[0]) for block in columns]
    bounds = _worth([block.sum(1) for block in columns], weights)
    known = torch.zeros(len(taken), dtype=torch.int64)  # chosen columns that a bound takes into account
    for step in range(K):
        best = int(bounds.argmax())
        while int(known[best]) < step:
            few = bounds.topk(min(_CANDIDATES, len(bounds))).indices
            few[-1] = best  # of many equal ones, topk may leave out the first
            more = [(block[few] - there).clamp_min(0).sum(1) for block, there in zip(columns, covered, strict=True)]
            bounds[few] = _worth(more, [weight[few] for weight in weights]).masked_fill(taken[few], TAKEN)
            known[few] = step
            best = int(bounds.argmax())
        taken[best] = True
        bounds[best] = TAKEN
        covered = [torch.maximum(there, block[best]) for there, block in zip(covered, columns, strict=True)]


def _worth(more: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """Gains, in the weights' dtype and in units of one row fully covered, weighed; less for what comes last."""
    gains = sum(one.to(weight.dtype) / GRID * weight for one, weight in zip(more, weights, strict=True))
    return gains.masked_fill(weights[0] < 0, LAST)
