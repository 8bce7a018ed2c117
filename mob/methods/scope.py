"""SCOPE (NeurIPS 2025, arXiv 2510.24214): tokens that the tower finds salient and that cover the others, together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mob.budget import Budget
from mob.coverage import cover, on_grid
from mob.covering import Selection, cosines, unit_rows
from mob.methods.base import SpanView, register
from mob.methods.options import check_number

MOST = 10  # of powers: attention that is 10^-30 of the largest still counts


@register("scope")
@dataclass(frozen=True)
class Scope:
    """Again and again the token with the highest a_j^alpha * sum_i max(0, cos_ij - cover_i), a_j its attention.

    Cosines are between hidden states of the tower, before the projector; a_j is the attention from the CLS token (of
    towers without one, the mean attention that a patch gets). The release chooses within each tile of a tiled picture,
    an equal share; here one budget covers all tiles. Newlines have no attention and go first. Without the CLS token and
    the prompt.

    Attributes:
        alpha: how much attention counts, at most 10; 0 for coverage alone. The release's default is 1.
    """

    early = True
    needs = ("tower",)
    paper = "SCOPE, NeurIPS 2025, arXiv 2510.24214"
    objective = "preservation"

    alpha: float = 1.0

    def __post_init__(self) -> None:
        check_number("alpha", self.alpha, 0, MOST)

    @torch.no_grad()
    def select(self, view: SpanView, budget: Budget) -> Selection:
        tower = view.tower
        units = unit_rows(tower.hidden)
        weight = _power(tower.scores, self.alpha).masked_fill(~tower.placed, -1.0)
        indices = cover([on_grid(cosines(units, units))], [weight], budget.K)
        return Selection(indices, torch.zeros_like(indices, dtype=torch.bool))


def _power(scores: Tensor, alpha: float) -> Tensor:
    """Scores (B, N) to a power, up to a factor that all tokens of a row share: otherwise small ones would vanish."""
    wide = scores.float().to(torch.float32 if scores.device.type == "mps" else torch.float64)
    # By a power of two, which changes no digit of what alpha = 1 gives.
    return torch.ldexp(wide, -torch.frexp(wide.amax(1, keepdim=True)).exponent) ** alpha
