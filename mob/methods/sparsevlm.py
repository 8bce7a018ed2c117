"""SparseVLM (ICML 2025, arXiv 2410.04417), first version and SparseVLM+: what telling words of the prompt attend to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mob.budget import Budget, round_half_up
from mob.checks import check_flag
from mob.covering import Selection
from mob.methods.base import Depth, Recycled, SpanView, highest, register
from mob.methods.schedules import PUBLISHED_TOKENS, check_layers, interpolated, layers_of
from mob.tensors import places_of

LAYERS = (3, 7, 16)  # after layers 2, 6 and 15 have run
# Kept after each stage, by the nominal budget, which is about the mean over the layers.
PUBLISHED = {192: (300, 200, 110), 128: (303, 110, 36), 96: (238, 48, 26), 64: (66, 30, 17)}
PUBLISHED_PLUS = {192: (300, 200, 118), 128: (238, 108, 60), 96: (246, 54, 28), 64: (66, 34, 20)}
HEADS = (14, 32)  # SparseVLM+ listens to 14 heads of 32


@register("sparsevlm")
@dataclass(frozen=True)
class SparseVLM:
    """Three stages; some of what is dropped is merged into few tokens, which stay.

    Raters are prompt tokens that the visual tokens resemble more than the average one, found once from what enters
    layer 0. A token's score is the attention it gets from them in the layer before, averaged over heads and raters. Of
    the dropped tokens the 30 % with the highest scores are clustered by density peaks, ten to a cluster, and averaged.

    K counts what is left after the last stage, merged tokens included: K = 113, 39, 27, 18 of 576 are the published
    lists for 192, 128, 96 and 64 (means 206, 145, 114, 82 over 32 layers). Other K lie on straight lines between
    those lists, which is ours. With ``recycle=False`` they are K = 110, 36, 26, 17.

    Unlike the release, a merged token stands where its cluster's centre stood, with its position (there: appended after
    the kept ones, positions numbered afresh); density has no noise added, ties go to the first token; and only the
    raters' rows of a map are computed.

    Attributes:
        recycle: merge; False: drop.
        layers: decoder layers at whose entry tokens leave; None: 3, 7 and 16 of 32, in proportion to the depth.
    """

    paper = "SparseVLM, ICML 2025, arXiv 2410.04417"
    objective = "alignment"
    needs = ("hidden states", "embeddings", "attention")
    where = "layers 3, 7, 16 of 32"
    stages = 3

    recycle: bool = True
    layers: Sequence[int] | None = None

    def __post_init__(self) -> None:
        check_flag("recycle", self.recycle)
        check_layers(self.layers)

    def plan(self, N: int, K: int, depth: Depth) -> list[tuple[int, int]]:
        lists = sorted(PUBLISHED.values(), key=lambda one: one[-1])
        return _plan(self, [with_merged(one) if self.recycle else one for one in lists], N, K, depth)

    @torch.no_grad()
    def select(self, view: SpanView, budget: Budget) -> Selection | Recycled:
        scores = view.probe.attention(raters(view)).mean(1)
        if not self.recycle:
            return highest(scores, budget.K)
        own, clusters = shares(budget.N, budget.K)
        order = scores.sort(dim=1, descending=True, stable=True).indices
        spare = order[:, own : own + spared(budget.N - own)].sort(1).values  # so that ties go to the first token
        states = view.visual.gather(1, spare[..., None].expand(-1, -1, view.visual.shape[-1]))
        cluster = density_peaks(states, clusters)
        centres = cluster == torch.arange(cluster.shape[1], device=cluster.device)
        into = torch.full_like(order, -1).scatter(1, order[:, :own], order[:, :own])
        into = into.scatter(1, spare, spare.gather(1, cluster))
        kept = torch.zeros_like(into, dtype=torch.bool).scatter(1, order[:, :own], True).scatter(1, spare, centres)
        indices = places_of(kept, budget.K)
        return Recycled(indices, torch.zeros_like(indices, dtype=torch.bool), into)


@register("sparsevlm2")
@dataclass(frozen=True)
class SparseVLMPlus:
    """The second version: attention is freed of the bias of rotary positions, few heads count, nothing is merged.

    Attention of the raters is divided by what queries and keys of ones would give between the two positions. (The
    release names logits what it divides; it is after the softmax, there and here. To divide what goes into the softmax
    would be another rule.) Of the heads the 14 of 32 that then give most to visual tokens count, 14/32 of them in other
    models. K = 118, 60, 28, 20 of 576 are the published lists for 192, 128, 96 and 64; other K lie between them, which
    is ours. Positions stay, there and here.

    Attributes:
        layers: as in ``sparsevlm``.
    """

    paper = "SparseVLM+, second version of the release of arXiv 2410.04417"
    objective = "alignment"
    needs = ("embeddings", "attention")
    where = "layers 3, 7, 16 of 32"
    stages = 3

    layers: Sequence[int] | None = None

    def __post_init__(self) -> None:
        check_layers(self.layers)

    def plan(self, N: int, K: int, depth: Depth) -> list[tuple[int, int]]:
        return _plan(self, sorted(PUBLISHED_PLUS.values(), key=lambda one: one[-1]), N, K, depth)

    def select(self, view: SpanView, budget: Budget) -> Selection:
        heads = view.probe.attention(raters(view), unbiased=True)
        count = max(1, round_half_up(heads.shape[1] * HEADS[0] / HEADS[1]))
        best = highest(heads.sum(2), count).indices
        return highest(heads.gather(1, best[..., None].expand(-1, -1, heads.shape[2])).mean(1), budget.K)


def _plan(rule: SparseVLM | SparseVLMPlus, lists: list, N: int, K: int, depth: Depth) -> list[tuple[int, int]]:
    layers = layers_of(rule.name, LAYERS, rule.layers, depth)
    if len(rule.layers or LAYERS) != len(LAYERS):
        raise ValueError(f"layers={list(rule.layers)}: {rule.name} has {len(LAYERS)} stages")
    return list(zip(layers, interpolated(lists, N, K)[len(LAYERS) - len(layers) :], strict=True))


def raters(view: SpanView) -> Tensor:
    """How much the row of each prompt token counts, float (B, L): the same for all raters, 0 for the others.

    A prompt token rates where its mean softmax likeness (dot products of input embeddings, over the prompt) to all
    visual tokens is above the mean over the prompt.
    """
    visual, there, prompt = view.probe.embeddings()
    if not prompt.shape[1]:
        return prompt.sum(-1)
    real = torch.ones_like(prompt[..., 0], dtype=torch.bool) if view.prompt_mask is None else view.prompt_mask
    dtype = torch.float64 if visual.dtype == torch.float64 else torch.float32
    with torch.autocast(visual.device.type, enabled=False):
        likeness = visual.to(dtype) @ prompt.to(dtype).transpose(1, 2)
    likeness = likeness.masked_fill(~real[:, None], torch.finfo(dtype).min).softmax(-1) * there[..., None]
    mean = likeness.sum(1) / there.sum(1, keepdim=True)
    rating = real & (mean > mean.sum(1, keepdim=True) / real.sum(1, keepdim=True))
    rating = torch.where(rating.any(1, keepdim=True), rating, real)  # all alike: everybody rates
    return rating / rating.sum(1, keepdim=True).clamp_min(1).to(dtype)


def spared(dropped: int) -> int:
    """How many of the dropped tokens are merged."""
    return min(dropped, dropped * 3 // 10 + 1)


def merged(dropped: int) -> int:
    """How many tokens these become."""
    return spared(dropped) // 10 + 1 if dropped else 0


def shares(N: int, K: int) -> tuple[int, int]:
    """K as (tokens that stay themselves, merged ones): the most of the former, the latter as many as published."""
    own = next((own for own in range(K, 0, -1) if own + merged(N - own) <= K), 0)
    return own, K - own


def with_merged(kept: Sequence[int]) -> tuple[int, ...]:
    """A published list with the merged tokens of each stage, which the next stage sees too."""
    out, N = [], PUBLISHED_TOKENS
    for own in kept:
        N = own + merged(N - own)
        out.append(N)
    return tuple(out)


def density_peaks(states: Tensor, clusters: int) -> Tensor:
    """For each of m states (B, m, d) the place of its cluster's centre, int64 (B, m).

    A centre is dense (its ``clusters`` nearest, itself among them, are near) and far from anything denser; the others
    follow the nearest centre. Ties go to the first.
    """
    states = states.to(torch.float64 if states.dtype == torch.float64 else torch.float32)
    size = states.shape[1]
    with torch.autocast(states.device.type, enabled=False):
        distance = torch.cdist(states, states, compute_mode="donot_use_mm_for_euclid_dist") / states.shape[-1] ** 0.5
    near = distance.sort(dim=2).values[..., :clusters]
    density = (-near.square().mean(-1)).exp()
    place = torch.arange(size, device=states.device)
    denser = density[:, None, :] > density[..., None]
    denser = denser | ((density[:, None, :] == density[..., None]) & (place < place[:, None]))
    farthest = distance.flatten(1).amax(1)[:, None, None]
    apart = torch.where(denser, distance, farthest).amin(2)
    centres = highest(apart * density, clusters).indices
    nearest = distance.gather(2, centres[:, None].expand(-1, size, -1)).argmin(2)
    own = centres.gather(1, nearest)
    return own.scatter(1, centres, centres)
