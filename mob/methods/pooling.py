"""Average pooling of the token grid, the baseline that every pruning rule should beat."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mob.budget import Budget, split
from mob.methods.base import Merged, SpanView, register
from mob.tensors import on_device

Cell = tuple[int, int, int, int]
_LONGEST = 2  # sides of a pooled cell may differ by this factor before rows get unequal numbers of cells


@register("pooling")
@dataclass(frozen=True)
class Pooling:
    """Means over K cells of the grid: 24 x 24 tokens and K = 64 are cells of 3 x 3.

    Rows and columns divide as in adaptive average pooling, where windows that do not come out even share tokens. K is
    laid out as h x w cells, as square as they go; where K has no divisors whose cells are at most twice as long as
    wide, rows of cells take turns in having one cell more, so that any K can be had (ours; others refuse such K). A
    cell stands where the median of its members stood, halves rounded up. Several views share K in proportion to their
    tokens. Newlines, and tokens without a place in a grid, are not averaged: they leave first, and stay, in order, only
    where K is more than there are cells.
    """

    early = True
    merges = True
    needs = ("features", "cells")
    paper = "average pooling of the token grid (baseline)"
    objective = "preservation"

    def select(self, view: SpanView, budget: Budget) -> Merged:
        indices, features = [], []
        for rows, cells in zip(view.visual, view.cells, strict=True):
            groups = _groups(cells, budget.K)
            wide = torch.promote_types(rows.dtype, torch.float32)
            means = [_mean(rows, members, wide) for _, members in groups]
            indices.append([place for place, _ in groups])
            features.append(torch.stack([mean.to(rows.dtype) for mean in means]))
        kept = on_device(indices, view.visual.device)
        return Merged(kept, torch.zeros_like(kept, dtype=torch.bool), torch.stack(features))


def _mean(rows: Tensor, members: Sequence[int], wide: torch.dtype) -> Tensor:
    """Of some rows; of one, the row itself. (A list as an index would wait for the device.)"""
    if len(members) == 1:
        return rows[members[0]]
    return rows[on_device(members, rows.device)].to(wide).mean(0)


def _groups(cells: Sequence[Cell], K: int) -> list[tuple[int, list[int]]]:
    """(place, members) of K merged tokens, by place."""
    views: dict[tuple[int, int], dict[tuple[int, int], int]] = {}
    others = []
    for index, (image, view, row, column) in enumerate(cells):
        if row >= 0 and column >= 0:
            views.setdefault((image, view), {})[row, column] = index
        else:
            others.append(index)
    sizes = [len(grid) for grid in views.values()]
    if not views:
        raise ValueError("pooling needs a grid of tokens, and the layout of this picture is not known: use 'divprune'")
    count = min(K, sum(sizes))
    shares = [part.K for part in split(Budget(sum(sizes), count, 0, 1), sizes)]
    groups = [(index, [index]) for index in others[: K - count]]
    for grid, share in zip(views.values(), shares, strict=True):
        height, width = 1 + max(row for row, _ in grid), 1 + max(column for _, column in grid)
        if height * width != len(grid):
            raise ValueError("pooling needs whole grids of tokens: name it before rules that drop some")
        for rows, columns in windows(height, width, share):
            members = [grid[row, column] for row in range(*rows) for column in range(*columns)]
            groups.append((grid[sum(rows) // 2, sum(columns) // 2], members))
    return sorted(groups)


def windows(height: int, width: int, K: int) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """K cells of a grid, as ((first row, end), (first column, end)); K <= height * width."""
    if not K:
        return []
    counts = _layout(height, width, K)
    return [
        (rows, columns)
        for rows, count in zip(_cuts(height, len(counts)), counts, strict=True)
        for columns in _cuts(width, count)
    ]


def _layout(height: int, width: int, K: int) -> list[int]:
    """Cells in each row of cells."""

    def uneven(rows: int) -> float:  # how far cells are from square
        return abs(math.log(height / rows / (width * rows / K)))

    even = [rows for rows in range(1, height + 1) if K % rows == 0 and K // rows <= width]
    if even and uneven(best := min(even, key=uneven)) <= math.log(_LONGEST) + 1e-9:
        return [K // best] * best
    rows = min(range(-(-K // width), min(height, K) + 1), key=uneven)
    return [(index + 1) * K // rows - index * K // rows for index in range(rows)]


def _cuts(size: int, count: int) -> list[tuple[int, int]]:
    """Windows of adaptive pooling: (first, end) of each."""
    return [(index * size // count, -(-(index + 1) * size // count)) for index in range(count)]
