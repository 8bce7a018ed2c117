"""DART (EMNLP 2025, arXiv 2502.11494): drop what duplicates a few pivot tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mob.budget import Budget
from mob.checks import check_flag
from mob.covering import Selection, cosines, unit_rows
from mob.methods.base import Depth, SpanView, register
from mob.tensors import places_of

PIVOTS = 4  # of each kind


@register("dart")
@dataclass(frozen=True)
class DART:
    """Pivots are the four visual and the four text tokens whose keys have the largest L1 norm; each in turn takes the
    tokens that resemble it least.

    Keys are those of the layer before, with positions, all heads; resemblance is the cosine of final-normed hidden
    states. Pivots take turns from the largest norm down, visual ones first: the release goes through a Python set, in
    no fixed order. A prompt of fewer than four tokens gives as many pivots. Kept tokens keep their positions.

    Attributes:
        published: keep 4 + 8 (K // 8) tokens, as the release does; by default exactly K, of which the first pivots
            take one more where K - 4 does not divide. (With fewer than eight pivots these share that number, too.)
    """

    paper = "DART, EMNLP 2025, arXiv 2502.11494"
    objective = "preservation"
    needs = ("keys", "normed")

    published: bool = False

    def __post_init__(self) -> None:
        check_flag("published", self.published)

    def plan(self, N: int, K: int, depth: Depth) -> list[tuple[int, int]]:
        return [(depth.layer, min(N, PIVOTS + 2 * PIVOTS * (K // (2 * PIVOTS)) if self.published else K))]

    @torch.no_grad()
    def select(self, view: SpanView, budget: Budget) -> Selection:
        keys, normed = view.probe.keys(), view.probe.normed()
        strength = [part.abs().sum(-1, dtype=torch.float64) for part in keys]
        if view.prompt_mask is not None:
            strength[1] = strength[1].masked_fill(~view.prompt_mask, -1.0)
        states = [unit_rows(part) for part in normed]
        seen, said = (_strongest(part, min(PIVOTS, budget.K)) for part in strength)
        order, pivots = _turns(strength, states, seen, said)
        taken = torch.zeros_like(strength[0], dtype=torch.bool).scatter(1, seen, True)
        shares = _shares(budget.K - seen.shape[1], order)
        likeness = cosines(pivots, states[0])
        for turn in range(pivots.shape[1]):
            rank = likeness[:, turn].masked_fill(taken, 2.0).argsort(dim=1, stable=True).argsort(dim=1)
            taken = taken | (rank < shares[:, turn, None])
        indices = places_of(taken, budget.K)
        return Selection(indices, torch.zeros_like(indices, dtype=torch.bool))


def _strongest(strength: Tensor, count: int) -> Tensor:
    """Places of the largest entries, from the largest down; of equal ones the first."""
    return strength.sort(dim=1, descending=True, stable=True).indices[:, :count]


def _turns(strength: list[Tensor], states: list[Tensor], seen: Tensor, said: Tensor) -> tuple[Tensor, Tensor]:
    """Which pivots there are, bool (B, P), and their states (B, P, d), in their turns."""
    there = [part.gather(1, place) >= 0 for part, place in zip(strength, (seen, said), strict=True)]
    width = states[0].shape[-1]
    pivots = [
        part.gather(1, at[..., None].expand(-1, -1, width)) for part, at in zip(states, (seen, said), strict=True)
    ]
    return torch.cat(there, 1), torch.cat(pivots, 1)


def _shares(count: int, there: Tensor) -> Tensor:
    """How many tokens each pivot takes, (B, P), ``count`` in all: equal numbers, one more for the first."""
    number = there.sum(1, keepdim=True).clamp_min(1)  # none: every key is NaN
    place = there.cumsum(1) - 1
    return torch.where(there, count // number + (place < count % number).long(), 0)
