"""Algorithm 2 of MoB: how strongly prompt and picture are coupled, and how well a selection covers both.

Distances are Euclidean between unit rows, as in the covering: every value lies in 0..2. Small eta means strong
coupling (many patches carry the answer, coverage pays), large eta weak coupling (few patches matter, alignment pays).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mob.coupling.modes import Modes, OnlineSplit, split
from mob.covering import cosines, unit_rows

__all__ = ["Modes", "OnlineSplit", "Radii", "hausdorff", "radii", "split", "weak_weight"]


class Radii(NamedTuple):
    """Hausdorff distances of Lemma 2, float32 (B,): eta = d(V, P), eps_p = d(S_p, P), eps_v = d(S_v, V).

    NaN where one of the two sets is empty.
    """

    eta: Tensor
    eps_p: Tensor
    eps_v: Tensor


@torch.no_grad()
def hausdorff(
    visual: Tensor, prompt: Tensor, *, visual_mask: Tensor | None = None, prompt_mask: Tensor | None = None
) -> Tensor:
    """Hausdorff distance between the two sets of rows, O(N L d): (N, d), (L, d) -> (); (B, N, d), (B, L, d) -> (B,).

    Masks are bool, True = real. NaN where a set is empty.
    """
    if visual.ndim not in (2, 3) or prompt.ndim != visual.ndim or visual.shape[-1] != prompt.shape[-1]:
        raise ValueError(
            f"visual {tuple(visual.shape)} and prompt {tuple(prompt.shape)}: give (N, d) and (L, d), or (B, N, d) and "
            "(B, L, d) of one width"
        )
    if visual.ndim == 2:
        masks = (None if mask is None else mask[None] for mask in (visual_mask, prompt_mask))
        return _between(unit_rows(visual)[None], unit_rows(prompt)[None], *masks)[0]
    return _between(unit_rows(visual), unit_rows(prompt), visual_mask, prompt_mask)


def weak_weight(eta: Tensor, tau: float, spread: float) -> Tensor:
    """How much the weak setting counts against the strong one, 0..1, float64 (B,): logistic in eta around ``tau``.

    ``spread`` 0 is the paper's recipe, one setting or the other; tau itself is strong. Where eta is NaN there is
    nothing to align with: 0.
    """
    away = eta.to(torch.float32 if eta.device.type == "mps" else torch.float64) - tau
    weight = torch.sigmoid(away / spread) if spread else (away > 0).to(away.dtype)
    return weight.masked_fill(eta.isnan(), 0.0)


@torch.no_grad()
def radii(
    visual: Tensor,
    prompt: Tensor,
    prompt_mask: Tensor | None,
    indices: Tensor,
    prompt_center: Tensor,
    real: Tensor | None = None,
) -> Radii:
    """eta, eps_p and eps_v of a selection: (B, N, d), (B, L, d), (B, L), (B, K), (B, K) -> three (B,).

    ``real``: bool (B, K), False for entries that are not kept.
    """
    visual_center = ~prompt_center
    if real is not None:
        prompt_center, visual_center = prompt_center & real, visual_center & real
    visual, prompt = unit_rows(visual), unit_rows(prompt)
    kept = visual.gather(1, indices[..., None].expand(-1, -1, visual.shape[-1]))
    return Radii(
        eta=_between(visual, prompt, None, prompt_mask),
        eps_p=_between(kept, prompt, prompt_center, prompt_mask),
        eps_v=_between(kept, visual, visual_center, None),
    )


def _between(a: Tensor, b: Tensor, a_mask: Tensor | None, b_mask: Tensor | None) -> Tensor:
    """Hausdorff distance of unit rows (B, n, d) and (B, m, d) -> (B,)."""
    if a.shape[1] == 0 or b.shape[1] == 0:
        return a.new_full(a.shape[:1], float("nan"))
    a_mask = a.new_ones(a.shape[:2], dtype=torch.bool) if a_mask is None else a_mask
    b_mask = b.new_ones(b.shape[:2], dtype=torch.bool) if b_mask is None else b_mask
    # The length of the zero vector (an unusable row) is 0, not 1: |a-b|^2 = |a|^2 + |b|^2 - 2 cos.
    squared = _lengths(a)[:, :, None] + _lengths(b)[:, None, :] - 2 * cosines(a, b)
    squared = squared.clamp_min(0)
    inf = float("inf")
    a_to_b = squared.masked_fill(~b_mask[:, None, :], inf).amin(2).masked_fill(~a_mask, -inf).amax(1)
    b_to_a = squared.masked_fill(~a_mask[:, :, None], inf).amin(1).masked_fill(~b_mask, -inf).amax(1)
    empty = ~(a_mask.any(1) & b_mask.any(1))
    return torch.maximum(a_to_b, b_to_a).masked_fill(empty, float("nan")).sqrt()


def _lengths(units: Tensor) -> Tensor:
    """1 for a unit row, 0 for an unusable one, exactly."""
    return (units != 0).any(-1).to(units.dtype)
