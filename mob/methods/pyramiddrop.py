"""PyramidDrop (CVPR 2025, arXiv 2410.17247): fewer visual tokens after each of several stages, by the last token's
attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mob.budget import Budget
from mob.covering import Selection
from mob.methods.base import Depth, SpanView, highest, register
from mob.methods.schedules import check_layers, geometric, layers_of

LAYERS = (8, 16, 24)


@register("pyramiddrop")
@dataclass(frozen=True)
class PyramidDrop:
    """At layers 8, 16 and 24 of 32 the tokens that the last token of the prompt attends to, by the layer about to run.

    Every stage keeps the same share, and K is what the last one leaves: K = 0.125 gives the published 1/2, 1/4, 1/8 of
    the original N, to within a token (the release cuts fractions off; here the last number is exact). Layers can be
    moved by ``layers``: with the published ones the mean over layers is never below N / 4 (144 of 576), so lower means
    need earlier layers, which is then to be said with the numbers.

    Unlike the release, which numbers kept tokens afresh, they keep their positions, and a query is one row, not a map.

    Attributes:
        layers: decoder layers at whose entry tokens leave; None: the published ones, in proportion to the depth.
    """

    paper = "PyramidDrop, CVPR 2025, arXiv 2410.17247"
    objective = "alignment"
    needs = ("own attention",)
    where = "layers 8, 16, 24 of 32"
    stages = 3

    layers: Sequence[int] | None = None

    def __post_init__(self) -> None:
        check_layers(self.layers)

    def plan(self, N: int, K: int, depth: Depth) -> list[tuple[int, int]]:
        layers = layers_of("pyramiddrop", LAYERS, self.layers, depth)
        count = len(self.layers or LAYERS)
        return list(zip(layers, geometric(N, K, count)[count - len(layers) :], strict=True))

    def select(self, view: SpanView, budget: Budget) -> Selection:
        return highest(view.probe.attention(own=True).mean(1), budget.K)
