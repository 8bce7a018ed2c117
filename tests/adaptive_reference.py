"""Adaptive budgets by the book, on lists of numbers."""

from __future__ import annotations

import math

import reference
from mob.budget import prompt_share
from tiny import PATCHES


def prefix(visual, text, K, K_p, k, epsilon):
    """The prompt centres, and then the shortest prefix of the farthest-point order that covers to epsilon."""
    order, centres = farthest_order(visual, text, K, K_p, k)
    start = max(len(centres), 1)
    for count in range(start, len(order) + 1):
        if radius(visual, order[:count]) <= epsilon:
            break
    kept = sorted(order[:count])
    return kept, [v in centres for v in kept]


def farthest_order(visual, text, K, K_p, k):
    """Prompt centres, then tokens in the order in which smaller and larger K take them."""
    K = min(K, len(visual))
    full, flags = reference.select(visual, text, K, K_p, k)
    centres = [v for v, flag in zip(full, flags, strict=True) if flag]
    order = list(centres)
    if not order:
        order = reference.select(visual, text, 1, 0, 1)[0]
    while len(order) < K:
        rest = [v for v in range(len(visual)) if v not in order]
        order.append(max(rest, key=lambda v: (min(1 - reference.cosine(visual[v], visual[c]) for c in order), -v)))
    assert sorted(order) == full
    return order, centres


def radius(visual, chosen):
    return max(min(math.sqrt(max(0, 2 - 2 * reference.cosine(v, visual[c]))) for c in chosen) for v in visual)


def adapted(tau, spread, epsilon):
    """(visual, prompt, K) -> the tokens that one picture keeps, by the book."""

    def choose(visual, text, K):
        if tau is None:
            K_p, k = 2, 2
        else:
            eta = reference.hausdorff(visual, text)
            w = 1 / (1 + math.exp(-(eta - tau) / spread))
            strong, weak = (float(prompt_share(len(visual), K, name)) for name in ("strong", "weak"))
            K_p = math.floor(K * (strong + w * (weak - strong)) + 0.5)
            k = max(1, math.floor(K_p * (3 / 40 + w * 2 / 40) + 0.5))
        if epsilon is None:
            return reference.select(visual, text, K, K_p, k)[0]
        return prefix(visual, text, K, K_p, k, epsilon)[0]

    return choose


class SlowAdaptive(reference.SlowLlava):
    """Every picture of a sample by ``choose``."""

    def __init__(self, model, choose):
        super().__init__(model.double(), lambda n: None, 2)
        self.rule = choose

    def _choose(self, ids, hidden, start, end, budget):
        visual = [i for i in range(start, end) if ids[i] == self.image_token and i not in self.dropped]
        text = [i for i in range(start, end) if ids[i] != self.image_token]
        self.kept.append([])
        if not visual:
            return
        values = hidden.double().numpy()
        asked = [i for i in text if i > visual[-1]] or [i for i in text if i > 0]
        for at in range(0, len(visual), PATCHES):
            here = values[visual[at : at + PATCHES]]
            self.kept[-1] += [at + i for i in self.rule(here, values[asked], PATCHES // 2)]
        self.dropped |= {v for i, v in enumerate(visual) if i not in self.kept[-1]}


class SlowFamily(reference.SlowDecoder):
    """The same for any model: a share of the tokens of every picture, each by ``choose``."""

    def __init__(self, model, choose, share, **more):
        super().__init__(model, budget=lambda n: None, **more)
        self.rule, self.share = choose, share

    def _choose(self, ids, hidden, start, end, lengths):
        visual = [i for i in range(start, end) if ids[i] in self.visual_ids]
        text = [i for i in range(start, end) if ids[i] not in self.visual_ids]
        values, at = hidden.double().numpy(), 0
        self.kept.append([])
        if not visual:
            return
        asked = [i for i in text if i > visual[-1]] or [i for i in text if i > 0]
        for length, K in zip(
            lengths, reference.shares(math.floor(self.share * len(visual) + 0.5), lengths), strict=True
        ):
            self.kept[-1] += [at + i for i in self.rule(values[visual[at : at + length]], values[asked], K)]
            at += length
        self.dropped |= {v for i, v in enumerate(visual) if i not in self.kept[-1]}
