"""Greedy maximum coverage (facility location): the token whose addition covers the rest best, again and again.

Similarities are integers, multiples of 2^-30, so that sums are exact in any order: a batch chooses what its samples
choose alone, and of equal gains the first token wins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

GRID = 2**30
TAKEN = float("-inf")


def on_grid(similar: Tensor) -> Tensor:
    """Similarities as integers; negative ones cover nothing: int32 of the same shape."""
    return torch.round(similar.clamp_min(0) * GRID).to(torch.int32)


def cover(blocks: Sequence[Tensor], score: Callable[[list[Tensor]], Tensor], K: int) -> Tensor:
    """K columns, ascending, int64 (B, K): each time the one with the highest score, ties to the lowest index.

    Args:
        blocks: each int32 (B, R, N), from ``on_grid``: how well column j covers row i. A row counts as covered as well
            as its best chosen column covers it, at first not at all.
        score: from the gain of each column in each block, float32 (B, N), in units of one row fully covered, to what is
            to be maximised.
    """
    batch, _, size = blocks[0].shape
    covered = [block.new_zeros(block.shape[:2]) for block in blocks]
    taken = torch.zeros(batch, size, dtype=torch.bool, device=blocks[0].device)
    for _ in range(K):
        gains = [_gain(block, best) for block, best in zip(blocks, covered, strict=True)]
        new = score(gains).masked_fill(taken, TAKEN).argmax(1, keepdim=True)
        taken = taken.scatter(1, new, True)
        for number, block in enumerate(blocks):
            column = block.gather(2, new[:, None].expand(-1, block.shape[1], -1))[..., 0]
            covered[number] = torch.maximum(covered[number], column)
    return taken.logical_not().to(torch.uint8).sort(dim=1, stable=True).indices[:, :K]


def _gain(block: Tensor, best: Tensor) -> Tensor:
    """float32 (B, N): how much more each column would cover."""
    more = (block - best[..., None]).clamp_min(0).sum(1)  # int64, exact
    return (more.double() if more.device.type == "cpu" else more).div(GRID).float()
