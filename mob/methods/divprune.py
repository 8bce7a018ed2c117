"""DivPrune (CVPR 2025, arXiv 2503.02175): the most diverse features, by max-min distance, before the decoder."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mob.budget import Budget
from mob.covering import Selection, cosines, unit_rows
from mob.farthest import NEVER, demanded_rows, sample
from mob.methods.base import SpanView, register
from mob.tensors import places_of

_ROWS = 1024  # of the matrix of cosines that are there at once


@register("divprune")
@dataclass(frozen=True)
class DivPrune:
    """Start with the token that is farthest from its nearest neighbour, then farthest-point sampling.

    Works on projected features, blind to the prompt. Taken tokens are marked, so that equal ones are not taken twice,
    which the published code does not do.
    """

    early = True
    needs = ("features",)
    paper = "DivPrune, CVPR 2025, arXiv 2503.02175"
    objective = "preservation"

    @torch.no_grad()
    def select(self, view: SpanView, budget: Budget) -> Selection:
        units = unit_rows(view.visual)
        first = (1 - _nearest(units)).argmax(1, keepdim=True)
        taken = torch.zeros_like(units[..., 0], dtype=torch.bool).scatter(1, first, True)
        distance = (1 - demanded_rows(units)(first)).masked_fill(taken, NEVER)
        indices = places_of(sample(units, taken, distance, budget.K, budget.K - 1), budget.K)
        return Selection(indices, torch.zeros_like(indices, dtype=torch.bool))


def _nearest(units: Tensor) -> Tensor:
    """Cosine to the nearest other token, (B, N, d) -> (B, N), without all of them at once."""
    found = []
    for start in range(0, units.shape[1], _ROWS):
        alike = cosines(units[:, start : start + _ROWS], units)
        alike.diagonal(start, 1, 2).fill_(NEVER)  # with itself
        found.append(alike.amax(2))
    return torch.cat(found, 1)
