"""Random choice, the baseline that every table needs."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mob.budget import Budget
from mob.checks import check_flag
from mob.covering import Selection
from mob.methods.base import SpanView, register
from mob.tensors import on_device


@register("random")
@dataclass(frozen=True)
class Random:
    """K of N without replacement. The draw depends on ``seed`` and N alone, so a batch equals its samples one by one;
    give each picture another seed to average over draws. ``early``: choose before the decoder, as a baseline of rules
    that do."""

    paper = "random choice (baseline)"
    objective = "preservation"
    needs = ()

    seed: int = 0
    early: bool = False

    def __post_init__(self) -> None:
        check_flag("early", self.early)
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not -(2**63) <= self.seed < 2**64:
            raise ValueError(f"seed={self.seed!r}: give an integer of at most 64 bits")

    def select(self, view: SpanView, budget: Budget) -> Selection:
        # Drawn on the CPU: the same numbers on every device, and no waiting for one.
        generator = torch.Generator().manual_seed(self.seed)
        draw = torch.randperm(budget.N, generator=generator)[: budget.K].sort().values
        indices = on_device(draw.tolist(), view.visual.device).expand(view.visual.shape[0], -1)
        return Selection(indices, torch.zeros_like(indices, dtype=torch.bool))
