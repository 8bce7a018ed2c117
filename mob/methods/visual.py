"""Visual preservation alone: farthest-point sampling, the K_p = 0 end of MoB."""

from __future__ import annotations

from dataclasses import dataclass

from mob.budget import Budget
from mob.checks import check_distance, check_flag
from mob.covering import Ragged, Selection, select
from mob.methods.base import SpanView, register


@register("visual")
@dataclass(frozen=True)
class Visual:
    """Every kept token is a visual centre; the prompt is not looked at. ``early``: before the decoder, on features.
    ``epsilon``: fewer than K stay where these cover the picture to that radius (ours, not the paper's).
    """

    paper = "MoB without prompt centres, NeurIPS 2025, arXiv 2505.10118"
    objective = "preservation"
    needs = ("hidden states",)

    early: bool = False
    epsilon: float | None = None

    def __post_init__(self) -> None:
        check_flag("early", self.early)
        check_distance("epsilon", self.epsilon)

    def select(self, view: SpanView, budget: Budget) -> Selection | Ragged:
        return select(view.visual, view.prompt[:, :0], budget.K, 0, 1, metric=view.metric, epsilon=self.epsilon)
