"""MoB (NeurIPS 2025, arXiv 2505.10118, Algorithm 1): K_p prompt centres, then visual centres."""

from __future__ import annotations

from dataclasses import dataclass

from mob.budget import Budget
from mob.covering import Selection, select
from mob.methods.base import SpanView, register


@register("mob")
@dataclass(frozen=True)
class MoB:
    """Multi-objective balanced covering: the budget is shared between prompt alignment and visual preservation."""

    paper = "MoB, NeurIPS 2025, arXiv 2505.10118"
    objective = "both"

    def select(self, view: SpanView, budget: Budget) -> Selection:
        return select(
            view.visual,
            view.prompt,
            budget.K,
            budget.K_p,
            budget.k,
            metric=view.metric,
            prompt_mask=view.prompt_mask,
        )
