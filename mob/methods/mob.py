"""MoB (NeurIPS 2025, arXiv 2505.10118, Algorithm 1): K_p prompt centres, then visual centres."""

from __future__ import annotations

from dataclasses import dataclass

from mob.budget import Budget, between
from mob.budget import budget as budget_of
from mob.checks import check_distance
from mob.coupling import hausdorff, weak_weight
from mob.covering import Ragged, Selection, select
from mob.methods.base import Adapted, SpanView, register

AUTO = "auto"


@register("mob")
@dataclass(frozen=True)
class MoB:
    """Multi-objective balanced covering: the budget is shared between prompt alignment and visual preservation.

    The options are set through keys of ``MoBConfig`` of these names, and ours, not the paper's. ``regime`` "auto": K_p
    and k of each picture follow from its eta, from the strong setting far below ``tau`` to the weak one far above, over
    a range of ``spread``; without ``tau`` the budget's own numbers hold. ``epsilon``: fewer than K tokens stay where
    these cover the picture to that radius.
    """

    paper = "MoB, NeurIPS 2025, arXiv 2505.10118"
    objective = "both"
    balanced = True

    regime: str | None = None
    tau: float | None = None
    spread: float = 0.0
    epsilon: float | None = None

    def __post_init__(self) -> None:
        if self.regime not in (None, AUTO):
            raise ValueError(f"regime={self.regime!r} of a rule: give 'auto'; others are settings of MoBConfig")
        for name in ("tau", "spread", "epsilon"):
            check_distance(name, getattr(self, name))

    def select(self, view: SpanView, budget: Budget) -> Selection | Ragged | Adapted:
        """Adapted with "auto"; else Ragged with ``epsilon``, a Selection without."""
        K_p, k, most, asked = budget.K_p, budget.k, None, {}
        if self.regime == AUTO:
            asked["eta"] = eta = hausdorff(view.visual, view.prompt, prompt_mask=view.prompt_mask)
            if self.tau is not None:
                weight = weak_weight(eta, self.tau, self.spread)
                K_p, k = between(budget.N, budget.K, weight)
                most = budget_of(budget.N, budget.K, schedule="weak").K_p  # never fewer than the strong one's
                asked |= {"weight": weight, "K_p": K_p, "k": k}
        chosen = select(
            view.visual,
            view.prompt,
            budget.K,
            K_p,
            k,
            metric=view.metric,
            prompt_mask=view.prompt_mask,
            epsilon=self.epsilon,
            at_most=most,
        )
        if not asked:
            return chosen
        return Adapted(*chosen[:2], chosen.real if isinstance(chosen, Ragged) else None, asked)
