"""Redundancy codebook (arXiv 2503.20540): before the language model, drop tokens that resemble known redundant ones.

The codebook holds prototypes of projected tokens that carried nothing: alone, within their surroundings, or within
their pictures. A token's redundancy is its largest cosine to a prototype. The question plays no part.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mob.budget import Budget
from mob.codebook_file import check_model, codebook_at, units_at
from mob.covering import cosines, unit_rows
from mob.methods.base import SpanView, register

POLICIES = ("threshold", "count", "ratio")
VARIANTS = ("cosine", "single_softmax", "double_softmax")


@register("codebook")
@dataclass(frozen=True)
class CodebookRule:
    """Keeps what resembles no prototype.

    Attributes:
        path: a codebook.safetensors, made by ``python -m redundancy_codebook``.
        policy: "threshold": keep tokens below ``theta``, as many as there are, but no more than K where a K is given.
            "count" and "ratio": exactly K, the least redundant ones; K is a number or a share.
        theta: a token whose largest cosine is at least this is dropped.
        min_keep: with "threshold", so many stay in any case (up to K), the least redundant first.
        variant: "cosine"; with "count" or "ratio" also "single_softmax" (softmax over prototypes) and "double_softmax"
            (times softmax over the picture's tokens), as published for ratios.
    """

    early = True  # works on the projector's outputs, before the language model
    paper = "Redundancy codebook, arXiv 2503.20540"
    objective = "preservation"
    needs = ("features", "codebook file")

    path: str = ""
    policy: str = "threshold"
    theta: float = 0.45
    min_keep: int = 1
    variant: str = "cosine"

    def __post_init__(self) -> None:
        if not isinstance(self.path, (str, os.PathLike)):
            raise ValueError(f"path={self.path!r}: give the path of a codebook.safetensors")
        if self.policy not in POLICIES:
            raise ValueError(f"policy={self.policy!r}: use one of {', '.join(POLICIES)}")
        if self.variant not in VARIANTS:
            raise ValueError(f"variant={self.variant!r}: use one of {', '.join(VARIANTS)}")
        if self.policy == "threshold" and self.variant != "cosine":
            raise ValueError(f"variant={self.variant!r} gives no cosines to compare with theta: use policy='ratio'")
        if isinstance(self.theta, bool) or not isinstance(self.theta, (int, float)) or not -1 <= self.theta <= 1:
            raise ValueError(f"theta={self.theta!r}: give a cosine between -1 and 1")
        if isinstance(self.min_keep, bool) or not isinstance(self.min_keep, int) or self.min_keep < 1:
            raise ValueError(f"min_keep={self.min_keep!r}: give an integer of at least 1")

    @property
    def adaptive(self) -> bool:
        """Whether the number of kept tokens is the rule's own decision."""
        return self.policy == "threshold"

    def keep(self, view: SpanView, budget: Budget) -> Tensor:
        """bool (B, N), True = stays. ``budget.K`` is N where no K was given."""
        values = redundancy(view.visual, self._units(view), self.variant)
        if self.policy == "threshold":
            return keep_below(values, self.theta, self.min_keep, budget.K)
        return keep_lowest(values, budget.K)

    def check(self, model: nn.Module) -> None:
        """ValueError where the codebook is missing, damaged or another model's."""
        check_model(codebook_at(self._path()), model, f"the codebook {self._path()}")

    def _path(self) -> str:
        if not self.path:
            raise ValueError('method "codebook" needs a codebook: give options={"path": "codebook.safetensors"}')
        return self.path

    def _units(self, view: SpanView) -> Tensor:
        units = units_at(self._path(), view.visual.device)
        if units.shape[1] != view.visual.shape[-1]:
            raise ValueError(
                f"the codebook {self.path} has prototypes of width {units.shape[1]}, this model's visual tokens have "
                f"{view.visual.shape[-1]}: build one for this model"
            )
        return units


@torch.no_grad()
def redundancy(visual: Tensor, units: Tensor, variant: str = "cosine") -> Tensor:
    """How redundant each token is, higher = more: float32 (B, N), or (N,) for (N, d).

    Args:
        visual: (B, N, d) or (N, d), any floating dtype; rows of zeros or with NaN resemble nothing.
        units: (n, d) float32 prototypes of length one.
        variant: "cosine": the largest cosine to a prototype. The softmax variants are logarithms, of
            softmax over prototypes, or of that times softmax over tokens, each at its best prototype.
    """
    similar = cosines(unit_rows(visual), units)
    if variant == "cosine":
        return similar.amax(-1)
    over_prototypes = similar - similar.logsumexp(-1, keepdim=True)
    if variant == "single_softmax":
        return over_prototypes.amax(-1)
    if variant != "double_softmax":
        raise ValueError(f"variant={variant!r}: use one of {', '.join(VARIANTS)}")
    return (over_prototypes + similar - similar.logsumexp(-2, keepdim=True)).amax(-1)


def keep_below(values: Tensor, theta: float, least: int = 1, most: int | None = None) -> Tensor:
    """bool (..., N): values strictly below ``theta``; at least ``least`` and at most ``most`` of them, lowest first."""
    size = values.shape[-1]
    most = size if most is None else min(most, size)
    rank = _ranks(values)
    return ((values < theta) | (rank < min(least, most))) & (rank < most)


def keep_lowest(values: Tensor, count: int) -> Tensor:
    """bool (..., N): the ``count`` lowest values, of equal ones the first."""
    return _ranks(values) < count


def _ranks(values: Tensor) -> Tensor:
    """0 for the lowest value of each row, ties by index."""
    return values.sort(dim=-1, stable=True).indices.argsort(dim=-1)
