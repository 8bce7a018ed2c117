"""A stage within the decoder, and what any stage shows its rule: pictures grouped by budget, and their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from mob.budget import Budget
from mob.config import MoBConfig
from mob.methods import Rule, SpanView
from mob.methods.base import Depth
from mob.spans import Spans
from mob.tensors import on_device, places_of


@dataclass(frozen=True)
class Stage:
    """At the entry of decoder layer ``layer`` this rule keeps ``budgets[i]`` of what sample i has left.

    ``budgets[i].N`` is the number of visual tokens that arrive there: K of the stage before. ``parts[i]`` are the
    budgets of its pictures, in order, each decided on its own; by default all of them together.
    """

    layer: int
    rule: Rule
    budgets: list[Budget]
    metric: str = "cosine"
    parts: list[list[Budget]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.parts:
            object.__setattr__(self, "parts", [[budget] for budget in self.budgets])


def schedule(rule: Rule, N: int, K: int, depth: Depth) -> list[tuple[int, int]]:
    """Where a rule within the decoder prunes, and how many of N visual tokens are left after each stage.

    One stage that leaves K, unless the rule has a schedule of its own.

    Raises:
        ValueError: a layer that cannot be, or stages that would bring tokens back.
    """
    plan = getattr(rule, "plan", None)
    stages = [(depth.layer, min(K, N))] if plan is None else plan(N, K, depth)
    for layer, _ in stages:
        depth.check(layer)
    layers, keeps = zip(*stages, strict=True)
    if (
        list(layers) != sorted(set(layers))
        or list(keeps) != sorted(keeps, reverse=True)
        or not min(1, K) <= keeps[-1] <= N
    ):
        raise ValueError(f"method={rule.name!r} of {N} tokens would keep {stages}: layers go up, tokens go down")
    return stages


def stages_of(settings: MoBConfig, rule: Rule, depth: Depth, spans: Spans) -> tuple[Stage, ...]:
    """The stages of a rule in one pass, ascending by layer. A sample that keeps everything does so at each of them."""
    wholes = [limited(rule, settings.budget(n)) for n in spans.visual_counts]
    plans = [None if whole.identity else schedule(rule, whole.N, whole.K, depth) for whole in wholes]
    layers = next(([layer for layer, _ in plan] for plan in plans if plan), [depth.layer])
    left = [[picture.length for picture in row] for row in spans.pictures]
    stages = []
    for number, layer in enumerate(layers):
        budgets, parts = [], []
        for sample, (whole, plan) in enumerate(zip(wholes, plans, strict=True)):
            N = sum(left[sample])
            K = plan[number][1] if plan else N
            budgets.append(Budget(N, K, min(whole.K_p, K), whole.k, whole.at_most))
            parts.append(settings.parts(budgets[-1], left[sample]))
            if K < N:
                left[sample] = [part.K for part in parts[-1]]
        stages.append(Stage(layer, rule, budgets, settings.distance_metric, parts))
    return tuple(stages)


def limited(rule: Rule, budget: Budget) -> Budget:
    """The budget as the rule takes it: no more than the most that may stay, where it stops at a radius."""
    return replace(budget, at_most=getattr(rule, "epsilon", None) is not None)


def by_budget(parts: Sequence[Sequence[Budget]]) -> dict[Budget, list[tuple[int, int]]]:
    """Pictures with equal budgets, as (sample, first of its visual tokens); what keeps nothing is left out.

    ``parts[i]`` are the budgets of sample i's pictures, in the order of their tokens.
    """
    groups: dict[Budget, list[tuple[int, int]]] = {}
    for sample, row in enumerate(parts):
        start = 0
        for budget in row:
            if budget.K:
                groups.setdefault(budget, []).append((sample, start))
            start += budget.N
    return groups


def view_of(
    hidden: Tensor, places: Tensor, prompt: Tensor, prompt_counts: Sequence[int], samples: Sequence[int], metric: str
) -> SpanView:
    """The visual tokens at ``places`` and the prompts of some samples.

    Args:
        hidden: (B, T, d); prompt: bool (B, T) with ``prompt_counts[i]`` True entries in row i.
        places: (n, N) places in the rows of ``samples``, n row numbers that may repeat.
    """
    rows = on_device(samples, hidden.device)
    lengths = [prompt_counts[sample] for sample in samples]
    questions = places_of(prompt[rows], max(lengths))
    mask = None if min(lengths) == max(lengths) else prompt[rows].gather(1, questions)
    rows = rows[:, None]
    return SpanView(hidden[rows, places], hidden[rows, questions], mask, metric)
