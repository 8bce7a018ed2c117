"""What ``compare.py`` asks: names of rules as the comparison writes them, what they cost, and the rows of both halves.

``early-random`` chooses before the decoder; ``A+mob`` leaves MoB twice K; ``mob:REGIME`` is MoB with that regime;
``RULE@1`` and ``RULE@1,2,3`` prune at these layers instead of their own, and are compared at equal mean only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from llava.scenes.checkpoint import NUM_PATCHES
from llava.scenes.evaluate import EARLY_RANDOM, Setup, settings_for
from mob import MoBConfig
from mob.cost import mean_tokens
from mob.methods import METHODS, create, own_layers
from mob.methods.base import Depth, is_early
from mob.stages import schedule

BUDGETS = tuple(math.floor(NUM_PATCHES * share + 0.5) for share in (1 / 3, 2 / 9, 1 / 9, 1 / 18))
JOINED, REGIMES = "divprune+mob", ("mob:strong", "mob:weak", "mob:auto")
# At layer 2 of six no mean can be low; these start at layer 1.
ELSEWHERE = ("mob@1", "pyramiddrop@1,2,3", "pyramiddrop@1,3,5")
LAYER, BATCH = 2, 50


@dataclass(frozen=True)
class Way:
    """A rule with ``K`` tokens left at its end, asked for the comparison at MoB's ``budget``, by "K" or by "mean"."""

    method: str
    K: int
    budget: int
    by: str

    @property
    def row(self) -> tuple[str, int]:
        return self.method, self.K


def rules(codebook: Path | None) -> list[str]:
    """What is compared: all that choose by themselves, random choice before the decoder, and one rule before MoB."""
    own = sorted(set(METHODS) - {"given", "mob", "codebook"})
    return ["mob", *own, EARLY_RANDOM, JOINED, *(["codebook"] if codebook else []), *REGIMES, *ELSEWHERE]


def read(method: str) -> tuple[list[str], list[int]]:
    """Names of the rules, and the layers that are asked for; none where they prune at their own."""
    name, _, layers = method.partition("@")
    return name.partition(":")[0].split("+"), [int(layer) for layer in layers.split(",") if layer]


def mean_of(method: str, K: int, layers: int) -> float:
    """Visual tokens a layer, on the mean over the decoder's layers."""
    (name, *late), at = read(method)
    if late:  # twice K before the decoder, then K
        return mean_tokens(min(2 * K, NUM_PATCHES), [(LAYER, K)], layers)
    if is_before(name):
        return float(K)
    rule = create(name, {"layers": at} if len(at) > 1 else {})
    asked = None if own_layers(name) else (at or [LAYER])[0]
    return mean_tokens(NUM_PATCHES, schedule(rule, NUM_PATCHES, K, Depth(layers, asked=asked)), layers)


def is_before(method: str) -> bool:
    """Whether a rule prunes before the decoder."""
    return method in (EARLY_RANDOM, "codebook") or is_early(create(method))


def ways(methods: list[str], budgets: list[int], layers: int) -> list[Way]:
    """All that is asked, by budget; a rule that cannot come down to MoB's mean is asked at equal K only."""
    out = []
    for budget in budgets:
        mean = mean_of("mob", budget, layers)
        for method in methods:
            out += [] if method in ELSEWHERE else [Way(method, budget, budget, "K")]
            K = None if method in REGIMES else _for_mean(method, mean, layers)  # the same again
            out += [] if K is None else [Way(method, K, budget, "mean")]
    return out


def _for_mean(method: str, mean: float, layers: int) -> int | None:
    """The most tokens at its end with which a rule costs no more than ``mean``."""
    fitting = [K for K in range(1, NUM_PATCHES + 1) if mean_of(method, K, layers) <= mean]
    return max(fitting, default=None)


@dataclass(frozen=True)
class Settings:
    """What a row is asked with. ``tau``, ``spread``: of mob:auto."""

    setup: Setup
    tau: float
    spread: float

    def of(self, method: str, K: int, seed: int) -> MoBConfig | None:
        """None for the unpruned model; ``seed`` is that of random rules."""
        (name, *_), at = read(method)
        if len(at) == 1:
            return MoBConfig(K=K, l_idx=at[0], method=name)
        if at:
            return MoBConfig(K=K, method=name, options={"layers": at})
        _, _, regime = method.partition(":")
        if not regime:
            return settings_for(method, K, seed, self.setup)
        numbers = {"tau": self.tau, "spread": self.spread} if regime == "auto" else {}
        return MoBConfig(K=K, l_idx=self.setup.layer, regime=regime, **numbers)
