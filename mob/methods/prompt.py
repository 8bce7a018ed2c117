"""Prompt alignment alone: the K visual tokens most similar to any prompt token."""

from __future__ import annotations

from dataclasses import dataclass

from mob.budget import Budget
from mob.covering import Selection, select
from mob.methods.base import SpanView, register


@register("prompt")
@dataclass(frozen=True)
class Prompt:
    """A cover of fold N with every token a prompt centre is just that ranking. Without a prompt: visual centres."""

    paper = "MoB with prompt centres alone (ablation)"
    objective = "alignment"
    needs = ("hidden states", "prompt")

    def select(self, view: SpanView, budget: Budget) -> Selection:
        return select(
            view.visual,
            view.prompt,
            budget.K,
            budget.K,
            budget.N,
            metric=view.metric,
            prompt_mask=view.prompt_mask,
        )
