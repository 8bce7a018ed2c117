"""Which patches of a picture are tested, and what counts as the surroundings of one. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

SAMPLINGS = ("grid", "cls", "random", "all")
WINDOW = 3
_RANKED = 576  # the published ranks count the patches of a 24 x 24 grid
_RANKS = (*range(1, 25), *(first + i for first in (37, 73, 145, 217, 289, 361, 433, 505, 569) for i in range(8)))


def choose(
    sampling: str,
    grid: tuple[int, int],
    *,
    cls_cosine: Tensor | None = None,
    ranks: Sequence[int] | None = None,
    count: int = 64,
    seed: tuple[int, int] = (0, 0),
) -> list[int]:
    """Indices of the patches to test, in raster order (for "cls": by rank).

    Args:
        sampling: "grid": every third row and column, whose 3 x 3 windows cover the picture; "cls": by rank of cosine to
            the CLS token; "random": ``count`` of them; "all".
        cls_cosine: (L,) for "cls".
        ranks: counted from 1 by falling cosine; None: the published ones, scaled to the number of patches.
        seed: of "random": the run's and the picture's number.

    Raises:
        ValueError: an unknown sampling, or "cls" without a CLS token.
    """
    size = grid[0] * grid[1]
    if sampling == "grid":
        return [row * grid[1] + column for row in centres(grid[0]) for column in centres(grid[1])]
    if sampling == "all":
        return list(range(size))
    if sampling == "random":
        generator = torch.Generator().manual_seed(seed[0] * 1_000_003 + seed[1])
        return sorted(torch.randperm(size, generator=generator)[: min(count, size)].tolist())
    if sampling != "cls":
        raise ValueError(f"sampling={sampling!r}: use one of {', '.join(SAMPLINGS)}")
    if cls_cosine is None:
        raise ValueError("this model's tower has no CLS token to rank patches by: use grid, random or all")
    # The index that sorting gives is used in every experiment: equal cosines are different patches.
    order = cls_cosine.cpu().sort(descending=True, stable=True).indices.tolist()
    wanted = list(dict.fromkeys(default_ranks(size) if ranks is None else ranks))
    if not wanted or min(wanted) < 1 or max(wanted) > size:
        raise ValueError(f"ranks must lie between 1 and {size}, the patches of a view")
    return [order[rank - 1] for rank in wanted]


def default_ranks(size: int) -> list[int]:
    """The published 96 ranks of 576 patches; for other numbers the same shares."""
    return list(dict.fromkeys(min(size, max(1, (rank * size + _RANKED // 2) // _RANKED)) for rank in _RANKS))


def parse_ranks(text: str) -> list[int]:
    """ "1-24,37" -> 1 to 24, and 37. ValueError for anything else."""
    out: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not first.strip().isdigit() or (dash and not last.strip().isdigit()):
            raise ValueError(f"ranks {text!r}: write numbers and ranges, such as 1-24,37-44")
        out += range(int(first), int(last or first) + 1)
    return out


def centres(side: int) -> list[int]:
    """Rows (or columns) of the windows' centres: 1, 4, 7, ...; where three do not divide the side, the last two
    windows overlap."""
    if side < WINDOW:
        raise ValueError(f"a grid of {side} patches a side is smaller than the {WINDOW} x {WINDOW} surroundings")
    return list(dict.fromkeys(min(first + 1, side - 2) for first in range(0, side, WINDOW)))


def window(index: int, grid: tuple[int, int]) -> list[int]:
    """The nine patches around one, in raster order; at the edges moved inwards, so that there are always nine."""
    (row, column), (rows, columns) = divmod(index, grid[1]), grid
    if rows < WINDOW or columns < WINDOW:
        raise ValueError(f"a grid of {rows} x {columns} patches is smaller than the {WINDOW} x {WINDOW} surroundings")
    top, left = min(max(row - 1, 0), rows - WINDOW), min(max(column - 1, 0), columns - WINDOW)
    return [(top + i) * columns + left + j for i in range(WINDOW) for j in range(WINDOW)]
