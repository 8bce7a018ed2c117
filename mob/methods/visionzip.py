"""VisionZip (CVPR 2025, arXiv 2412.04467): what the vision tower attends to, and the rest merged."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from mob.budget import Budget, round_half_up
from mob.checks import check_flag
from mob.covering import cosines, unit_rows
from mob.methods.base import Merged, SpanView, TowerView, register
from mob.tensors import product

_SHARE = Fraction(10, 64)  # the published 54 + 10, 108 + 20 and 162 + 30
ORDERS = ("raster", "published")


@register("visionzip")
@dataclass(frozen=True)
class VisionZip:
    """K - C dominant tokens: the CLS token, and the patches that it attends to most; and C contextual ones.

    Of the other patches every n-th is a target; all others go to the target with the most similar key (cosine of the
    mean over heads), and a contextual token is its target plus the mean of what went to it, before the projector.

    What differs from the release. The tower is not changed. A merged token takes its target's place. The CLS token,
    which has none, takes that of the best patch that is neither dominant nor a target. Tokens keep raster order, where
    the release puts the CLS token and contextual tokens around the dominant ones: see ``order``. Tiled pictures have
    one budget for all tiles, and the CLS token of the whole view; newlines are never merged, and leave first. Of towers
    without a CLS token (SigLIP, Qwen), a patch's score is the mean attention that it gets, our substitute; where a
    token shows several patches, all is their mean.

    Attributes:
        contextual: how many of the K are merged tokens, an integer or a share; None: the published share, 10 of 64.
        cls: whether the CLS token is one of the K, as published, where there is one.
        order: "raster", or "published": the CLS token, dominant, then contextual tokens, laid in this order into the
            kept places. Records name the places, so that with "published" they do not say which token is where.
    """

    early = True
    merges = True
    needs = ("features", "tower")
    paper = "VisionZip, CVPR 2025, arXiv 2412.04467"
    objective = "preservation"

    contextual: int | float | None = None
    cls: bool = True
    order: str = "raster"

    def __post_init__(self) -> None:
        C = self.contextual
        wrong = isinstance(C, bool) or not (C is None or isinstance(C, (int, float)))
        if wrong or (C is not None and (not C >= 0 or (isinstance(C, float) and C >= 1))):
            raise ValueError(f"contextual={C!r}: give a number of tokens, a share from 0 to below 1, or None")
        check_flag("cls", self.cls)
        if self.order not in ORDERS:
            raise ValueError(f"order={self.order!r}: use one of {', '.join(ORDERS)}")

    def select(self, view: SpanView, budget: Budget) -> Merged:
        chosen = [self._one(view.visual[row], _row(view.tower, row), budget.K) for row in range(len(view.visual))]
        indices, features = (torch.stack(part) for part in zip(*chosen, strict=True))
        return Merged(indices, torch.zeros_like(indices, dtype=torch.bool), features)

    def contextual_count(self, K: int) -> int:
        """C of K tokens."""
        if isinstance(self.contextual, int):
            if self.contextual >= K:
                raise ValueError(f"contextual={self.contextual} of K={K} tokens: leave at least one dominant token")
            return self.contextual
        share = _SHARE if self.contextual is None else Fraction(repr(float(self.contextual)))
        return min(K - 1, round_half_up(share * K))

    def _one(self, visual: Tensor, tower: TowerView, K: int) -> tuple[Tensor, Tensor]:
        """Places (K,), ascending, and features (K, d) of one sample."""
        patches = tower.placed.nonzero()[:, 0]
        if len(patches) < K:  # every patch stays, and some newlines with them
            newlines = (~tower.placed).nonzero()[: K - len(patches), 0]
            kept = torch.cat([patches, newlines]).sort().values
            return kept, visual[kept]
        C, has_cls = self.contextual_count(K), int(self.cls and tower.cls is not None)
        ranked = patches[tower.scores[patches].sort(descending=True, stable=True).indices]
        dominant = ranked[: K - C - has_cls].sort().values
        rest = ranked[K - C - has_cls :].sort().values
        targets = rest[:: max(1, len(rest) // max(1, C))][:C]
        parts = [(dominant, visual[dominant])]
        if has_cls:
            free = ranked[K - C - has_cls :]
            parts.insert(0, (free[~torch.isin(free, targets)][:1], tower.project(tower.cls[None])))
        if C:
            parts.append((targets, tower.project(_merged(tower, rest, targets))))
        places, features = (torch.cat([one.to(visual.device) for one in part]) for part in zip(*parts, strict=True))
        order = places.sort().indices
        return places[order], (features if self.order == "published" else features[order]).to(visual)


def _merged(tower: TowerView, rest: Tensor, targets: Tensor) -> Tensor:
    """Hidden states (C, d_v) of the targets, each with the mean of those of the ``rest`` that are most like it."""
    others = rest[~torch.isin(rest, targets)]
    units = unit_rows(tower.keys)
    nearest = cosines(units[others], units[targets]).argmax(1)
    hidden = tower.hidden.to(torch.promote_types(tower.hidden.dtype, torch.float32))
    # A product, since accelerators add up what ``index_add`` is given in no fixed order.
    member = nearest == torch.arange(len(targets), device=nearest.device)[:, None]
    total = product(member.to(hidden.dtype), hidden[others])
    return (hidden[targets] + total / member.sum(1).clamp_min(1)[:, None]).to(tower.hidden.dtype)


def _row(tower: TowerView, row: int) -> TowerView:
    """Of one sample."""
    cls = None if tower.cls is None or bool(tower.cls[row].isnan().any()) else tower.cls[row]
    return TowerView(tower.scores[row], tower.keys[row], tower.hidden[row], tower.placed[row], cls, tower.project)
