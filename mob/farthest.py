"""Farthest-point sampling on unit rows: always take the token whose nearest taken token is farthest away.

Two ways to the same indices. ``by_gram`` reads rows of the Gram matrix, in a loop over a whole batch: for accelerators
and small sizes. ``lazily`` is for CPUs, where products of long rows are what costs: it computes them only for tokens
that could be the farthest.
"""

from __future__ import annotations

import torch
from torch import Tensor

GRID = 2.0**20
NEVER = float("-inf")
_CANDIDATES = 12  # tokens that are brought up to date together


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Cosines of unit rows on the comparison grid: (B, n, d), (B, m, d) -> float32 (B, n, m)."""
    with torch.autocast(a.device.type, enabled=False):
        return (torch.round(a @ b.transpose(-1, -2) * GRID) / GRID).float()


def by_gram(units: Tensor, taken: Tensor, distance: Tensor, K: int, steps: int) -> Tensor:
    """bool (B, N): ``taken`` with more tokens, until every row has K.

    Args:
        units: (B, N, d) unit rows.
        distance: float32 (B, N), 1 - cosine to the nearest taken token, -inf where a token is taken or not real.
        steps: how many tokens the row with the fewest still needs; rows that are full ignore the rest.
    """
    gram, size = cosines(units, units), units.shape[1]
    count = taken.sum(1)
    for _ in range(steps):
        farthest = distance.argmax(1)[:, None]  # the first of equal maxima
        taken = taken.scatter(1, farthest, taken.gather(1, farthest) | (count < K)[:, None])
        row = gram.gather(1, farthest[..., None].expand(-1, -1, size))[:, 0]
        distance = torch.minimum(distance, 1 - row).scatter(1, farthest, NEVER)
        count = count + 1
    return taken


def lazily(units: Tensor, taken: Tensor, distance: Tensor, K: int) -> Tensor:
    """The same for CPUs, row by row.

    A distance only ever shrinks, so an old one is an upper bound: where the largest bound is up to date, it is the
    farthest token's. Where it is not, the few largest are brought up to date and the question is asked again.
    """
    return torch.stack([_one(*row, K) for row in zip(units, taken, distance, strict=True)])


def _one(units: Tensor, taken: Tensor, bounds: Tensor, K: int) -> Tensor:
    """(N, d), (N,), (N,) -> bool (N,)."""
    taken, bounds = taken.clone(), bounds.clone()
    steps = K - int(taken.sum())
    centres = units.new_empty(steps, units.shape[1])
    known = torch.zeros(len(units), dtype=torch.int64)  # new centres that a token's bound takes into account
    for step in range(steps):
        farthest = int(bounds.argmax())
        while int(known[farthest]) < step:
            few = bounds.topk(min(_CANDIDATES, len(bounds))).indices
            _update(units, bounds, known, few, centres[:step])
            farthest = int(bounds.argmax())
        taken[farthest] = True
        bounds[farthest] = NEVER
        centres[step] = units[farthest]
    return taken


def _update(units: Tensor, bounds: Tensor, known: Tensor, few: Tensor, centres: Tensor) -> None:
    """Bring the bounds of a few tokens up to date, in place."""
    seen = known[few]
    first = int(seen.min())
    away = 1 - cosines(units[few], centres[first:])
    counted = torch.arange(first, len(centres)) < seen[:, None]
    bounds[few] = torch.minimum(bounds[few], away.masked_fill(counted, float("inf")).amin(1))
    known[few] = len(centres)


def lazy_pays(batch: int, size: int, width: int, steps: int) -> bool:
    """Whether ``lazily`` is estimated to be faster than ``by_gram`` on a CPU.

    Rough costs of one thread: 40 and 10 billion multiply-adds a second in large and small products, 0.12 ms for a round
    of the lazy loop and 0.02 ms for one of the other.
    """
    gram = batch * size**2 * width / 2e10 + steps * 2e-5
    lazy = batch * steps * (2.4e-4 + _CANDIDATES * steps / 2 * width / 1e10)
    return lazy < gram
