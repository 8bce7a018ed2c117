"""FastV (ECCV 2024, arXiv 2403.06764): the visual tokens that the last token of the prompt attends to."""

from __future__ import annotations

from dataclasses import dataclass

from mob.budget import Budget
from mob.covering import Selection
from mob.methods.base import SpanView, highest, register


@register("fastv")
@dataclass(frozen=True)
class FastV:
    """The K highest entries of one attention row of the layer before, averaged over heads; once, at prefill.

    As in the release for layer 2 and above, K being round(N (1 - R)). There the whole map is computed with eager
    attention; here its one row, so any kernel will do. Its mask-only and no-cache variants save no time and are left
    out. Kept tokens keep their positions, there and here.
    """

    paper = "FastV, ECCV 2024, arXiv 2403.06764"
    objective = "alignment"
    needs = ("attention",)

    def select(self, view: SpanView, budget: Budget) -> Selection:
        return highest(view.probe.attention().mean(1), budget.K)
