"""Farthest-point sampling on unit rows: always take the token whose nearest taken token is farthest away.

Three ways to the same indices. ``loop`` takes one token after the other in all rows of a batch, with rows of the Gram
matrix (for accelerators and small sizes) or with products made on demand. ``lazily`` is for CPUs, where products of
long rows are what costs: it makes them only for tokens that could be the farthest.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

GRID = 2.0**20
NEVER = float("-inf")
_CANDIDATES = 12  # tokens that are brought up to date together


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Cosines of unit rows on the comparison grid: (B, n, d), (B, m, d) -> float32 (B, n, m)."""
    with torch.autocast(a.device.type, enabled=False):
        return (torch.round(a @ b.transpose(-1, -2) * GRID) / GRID).float()


def sample(units: Tensor, taken: Tensor, distance: Tensor, K: int, steps: int) -> Tensor:
    """bool (B, N): ``taken`` with more tokens, until every row has K, in the way that is fastest for these sizes.

    Args:
        units: (B, N, d) unit rows.
        taken: bool (B, N), at least one token in each row.
        distance: float32 (B, N), 1 - cosine to the nearest taken token, -inf where a token is taken or not real.
        steps: how many tokens the row with the fewest still needs; rows that are full ignore the rest.
    """
    if units.device.type != "cpu":
        return loop(taken, distance, K, steps, gram_rows(units))
    gram, demand, lazy = costs(*units.shape, steps)
    if lazy < min(gram, demand):
        return lazily(units, taken, distance, K)
    return loop(taken, distance, K, steps, gram_rows(units) if gram < demand else demanded_rows(units))


def costs(batch: int, size: int, width: int, steps: int) -> tuple[float, float, float]:
    """Estimated seconds on one CPU thread with the Gram matrix, with rows on demand, and lazily.

    Fitted to measurements at N = 576 to 11664 and d = 1024 and 4096 on a machine without AVX-512; only ratios matter.
    """
    gram = batch * size**2 * width / 3.6e10 + steps * 2e-5
    demand = steps * (batch * size * width * 1.6e-10 + 3e-5)
    lazy = batch * steps * (2.5e-4 + _CANDIDATES * steps / 2 * width / 2e10)
    return gram, demand, lazy


def gram_rows(units: Tensor) -> Callable[[Tensor], Tensor]:
    """A function (B, 1) places -> (B, N) cosines, from a Gram matrix that is made once."""
    gram, size = cosines(units, units), units.shape[1]
    return lambda place: gram.gather(1, place[..., None].expand(-1, -1, size))[:, 0]


def demanded_rows(units: Tensor) -> Callable[[Tensor], Tensor]:
    """The same, each row made when it is asked for."""
    width = units.shape[2]
    return lambda place: cosines(units, units.gather(1, place[..., None].expand(-1, -1, width)))[..., 0]


def loop(taken: Tensor, distance: Tensor, K: int, steps: int, row_of: Callable[[Tensor], Tensor]) -> Tensor:
    """One token after the other, in all rows of the batch at once, without a look at any number."""
    count = taken.sum(1)
    for _ in range(steps):
        farthest = distance.argmax(1)[:, None]  # the first of equal maxima
        taken = taken.scatter(1, farthest, taken.gather(1, farthest) | (count < K)[:, None])
        distance = torch.minimum(distance, 1 - row_of(farthest)).scatter(1, farthest, NEVER)
        count = count + 1
    return taken


def lazily(units: Tensor, taken: Tensor, distance: Tensor, K: int) -> Tensor:
    """Row by row of the batch, on a CPU.

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
            few[-1] = farthest  # of many equal ones, topk may leave out the first
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
