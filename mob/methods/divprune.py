"""DivPrune (CVPR 2025, arXiv 2503.02175): the most diverse features, by max-min distance, before the decoder."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mob.budget import Budget
from mob.covering import Selection, cosines, unit_rows
from mob.methods.base import SpanView, register


@register("divprune")
@dataclass(frozen=True)
class DivPrune:
    """Start with the token that is farthest from its nearest neighbour, then farthest-point sampling.

    Works on projected features, blind to the prompt. Taken tokens are marked, so that equal ones are not taken twice,
    which the published code does not do.
    """

    early = True
    needs = ()
    paper = "DivPrune, CVPR 2025, arXiv 2503.02175"
    objective = "preservation"

    @torch.no_grad()
    def select(self, view: SpanView, budget: Budget) -> Selection:
        units = unit_rows(view.visual)
        batch, N, _ = units.shape
        distance = 1 - cosines(units, units)
        alone = distance.masked_fill(torch.eye(N, dtype=torch.bool, device=units.device), float("inf"))
        new = alone.amin(2).argmax(1, keepdim=True)
        nearest = torch.full((batch, N), float("inf"), device=units.device)
        chosen = [new]
        for _ in range(budget.K - 1):
            row = distance.gather(1, new[..., None].expand(-1, -1, N))[:, 0]
            nearest = torch.minimum(nearest, row).scatter(1, new, float("-inf"))
            new = nearest.argmax(1, keepdim=True)
            chosen.append(new)
        indices = torch.cat(chosen, 1).sort(1).values
        return Selection(indices, torch.zeros_like(indices, dtype=torch.bool))
