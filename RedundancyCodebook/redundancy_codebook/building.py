"""``cluster``: from a run's measurements to a codebook."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mob.codebook_file import Codebook
from redundancy_codebook.clustering import (
    NEIGHBOURS,
    dpc_knn,
    members,
    recurring,
    within_picture,
    without_duplicates,
    without_similar,
)
from redundancy_codebook.divergence import DIVERGENCES
from redundancy_codebook.measuring import versions
from redundancy_codebook.runs import Run

_PER_CLUSTER = 20  # candidates for each cluster over pictures, about as many as the published builds had


@dataclass(frozen=True)
class Recipe:
    """How prototypes are chosen.

    Attributes:
        p_max, J_max: a token is redundant if its ``p_top1`` and its J are both below these. J_max is in units of
            ``divergence``: a published threshold, about 2e-3, is ten times as much for "jsd".
        p_quantile, J_quantile: the same as quantiles of the run, used where the number is None.
        divergence: "legacy_mean_reverse" or "jsd".
        local_weight, global_weight: J = local_weight * D_local + global_weight * D_global.
        picture_clusters, picture_largest: of a picture's tokens in that many clusters, redundant ones count only in
            clusters with at most so many tokens.
        clusters: over all pictures; None: one for every 20 candidates, at most 64.
        min_pictures: a cluster is kept if its tokens come from more than so many pictures; a share counts of the
            pictures that have candidates, and is at least one.
        dedup: drop prototypes whose cosine to an earlier one is at least this; 1.0: equal ones only; None: none.
        neighbours, seed: of the clustering.
    """

    p_max: float | None = None
    J_max: float | None = None
    p_quantile: float = 0.4
    J_quantile: float = 0.4
    divergence: str = DIVERGENCES[0]
    local_weight: float = 1.0
    global_weight: float = 16.0
    picture_clusters: int = 8
    picture_largest: int = 8
    clusters: int | None = None
    min_pictures: int | float = 0.05
    dedup: float | None = 1.0
    neighbours: int = NEIGHBOURS
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("p_quantile", "J_quantile"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: give a share above 0, at most 1")
        for name in ("picture_clusters", "picture_largest", "clusters", "neighbours"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: must be at least 1")
        if self.min_pictures < 0:
            raise ValueError(f"min_pictures={self.min_pictures}: give a number of pictures, or a share below 1")
        if self.dedup is not None and not 0 < self.dedup <= 1:
            raise ValueError(f"dedup={self.dedup}: give a cosine above 0, at most 1")
        if self.divergence not in DIVERGENCES:
            raise ValueError(f"divergence={self.divergence!r}: use one of {', '.join(DIVERGENCES)}")


# Numbers of the published builds; the quantiles are ours, for models without any.
PRESETS = {
    "quantiles": Recipe(),
    "llava-1.5": Recipe(0.15, 2e-3, clusters=64, min_pictures=64),
    "llava-1.5-13b": Recipe(0.077, 1.8e-3, clusters=64, min_pictures=64),
    "llava-next": Recipe(0.10, 2e-3, clusters=64, min_pictures=64),
    "llava-onevision": Recipe(0.08, 1.8e-3, picture_largest=3, clusters=24, min_pictures=16),
}


@dataclass(frozen=True)
class Stages:
    """What each step left, as numbers of tested tokens: for tables and figures."""

    redundant: Tensor
    candidates: Tensor
    kept: Tensor
    p_max: float
    J_max: float


def build(run: Run, recipe: Recipe, say: Callable[[str], Any] = lambda text: None) -> tuple[Codebook, Stages]:
    """The codebook of a run.

    Raises:
        ValueError: some step leaves nothing; the message says which number to change.
    """
    p, J = run.values("p_top1"), run.score(recipe.divergence, recipe.local_weight, recipe.global_weight)
    if not len(p):
        raise ValueError(f"{run.folder} has no measurements yet: run python -m redundancy_codebook measure first")
    p_max = recipe.p_max if recipe.p_max is not None else float(_quantile(p, recipe.p_quantile))
    J_max = recipe.J_max if recipe.J_max is not None else float(_quantile(J, recipe.J_quantile))
    redundant = (p < p_max) & J.lt(J_max)
    say(f"redundant: {int(redundant.sum())} of {len(p)} tested tokens (p_top1 < {p_max:.4g} and J < {J_max:.4g})")
    if not bool(redundant.any()):
        raise ValueError(
            "no token is below both thresholds: raise p_max or J_max, or use quantiles (--preset quantiles)"
        )

    features, pictures = run.features(), run.picture_of
    candidates = _candidates(features, redundant, pictures, recipe)
    at = candidates.nonzero()[:, 0]
    say(f"after the filter within pictures: {len(at)} of {len(pictures[at].unique())} pictures")
    if not len(at):
        raise ValueError("the filter within pictures leaves nothing: raise picture_largest or picture_clusters")

    rows = features[at].clone()
    clusters = recipe.clusters or max(1, min(64, len(at) // _PER_CLUSTER))
    least = _least(recipe.min_pictures, len(pictures[at].unique()))
    labels = dpc_knn(rows, clusters, neighbours=recipe.neighbours, seed=recipe.seed).labels
    chosen = recurring(labels, pictures[at], least)
    say(f"recurring: {len(chosen)} of {len(labels.unique())} clusters have tokens of more than {least} pictures")
    if not chosen:
        raise ValueError(f"no cluster has tokens of more than {least} pictures: lower min_pictures, or measure more")
    order = members(labels, chosen)
    order, change = _deduplicated(rows, order, recipe.dedup)
    say(f"prototypes: {len(order)}")

    prototypes, sources = rows[order], pictures[at][order]
    used = sorted(set(sources.tolist()))
    metadata = {
        **run.manifest["identity"],
        "pictures": [run.lines[i]["picture"] for i in used],
        "build": {
            **asdict(recipe),
            "p_max": p_max,
            "J_max": J_max,
            "clusters": clusters,
            "min_pictures": least,
            "kept_clusters": chosen,
            "largest_change_by_dedup": change,
            "measured_pictures": len(run.lines),
            "measured_tokens": run.tested,
            "redundant": int(redundant.sum()),
            "candidates": len(at),
        },
        "measure": run.manifest["settings"],
        "measurements_sha256": _lines_sha256(run),
        "versions": versions(),
    }
    index = torch.tensor([used.index(i) for i in sources.tolist()], dtype=torch.int32)
    kept = torch.zeros_like(candidates)
    kept[at[order]] = True
    book = Codebook(prototypes, metadata, labels[order].to(torch.int32), index)
    return book, Stages(redundant, candidates, kept, p_max, J_max)


def with_options(preset: str, **changes: Any) -> Recipe:
    """A preset with some numbers changed; None changes nothing. Given quantiles win over a preset's numbers."""
    if preset not in PRESETS:
        raise ValueError(f"preset={preset!r}: use one of {', '.join(PRESETS)}")
    given = {key: value for key, value in changes.items() if value is not None}
    for name in ("p", "J"):
        if f"{name}_quantile" in given and f"{name}_max" not in given:
            given[f"{name}_max"] = None
    return replace(PRESETS[preset], **given)


def _quantile(values: Tensor, share: float) -> Tensor:
    """Just above the ``share`` lowest values, so that "below it" means at least one."""
    place = min(len(values) - 1, max(0, round(share * len(values)) - 1))
    return values.sort().values[place].nextafter(torch.tensor(float("inf"), dtype=values.dtype))


def _candidates(features: Tensor, redundant: Tensor, pictures: Tensor, recipe: Recipe) -> Tensor:
    """bool (tested,): redundant tokens that also pass the filter within their pictures."""
    out = torch.zeros_like(redundant)
    for picture in pictures[redundant].unique().tolist():
        mine = (pictures == picture).nonzero()[:, 0]
        found = dpc_knn(features[mine], recipe.picture_clusters, neighbours=recipe.neighbours, seed=recipe.seed)
        out[mine] = within_picture(redundant[mine], found.labels, recipe.picture_largest)
    return out


def _least(wanted: int | float, pictures: int) -> int:
    return max(1, int(wanted * pictures)) if 0 < wanted < 1 else int(wanted)


def _deduplicated(rows: Tensor, order: Tensor, cosine: float | None) -> tuple[Tensor, float]:
    if cosine is None:
        return order, 0.0
    order = order[without_duplicates(rows[order])]
    if cosine == 1:
        return order, 0.0
    thinned = without_similar(rows[order], cosine)
    return order[thinned.rows], thinned.change


def _lines_sha256(run: Run) -> str:
    digest = hashlib.sha256()
    for line in run.lines:
        digest.update(repr(sorted(line.items())).encode())
    return digest.hexdigest()
