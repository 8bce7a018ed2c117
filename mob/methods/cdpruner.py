"""CDPruner (NeurIPS 2025, arXiv 2506.10967): a determinantal point process over features, weighted by relevance."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mob.budget import Budget
from mob.checks import check_flag
from mob.covering import Selection, cosines, unit_rows
from mob.methods.base import SpanView, register
from mob.methods.options import check_number
from mob.tensors import places_of

TOLERANCE = 2.0**-18  # of a token's own variance: below it, what is left is rounding
TAKEN = float("-inf")
_EPSILON = 1e-6


@register("cdpruner")
@dataclass(frozen=True)
class CDPruner:
    """Greedy MAP of the kernel diag(r) S diag(r): S the cosines of projected features, r each token's relevance.

    The paper's relevance comes from the text tower that was trained with the vision tower, which LLaVA checkpoints and
    most other models do not have. Here it is the model's own, as in OpenVINO's port: the mean cosine of a feature to
    the prompt's word embeddings, brought to 0..1 within each picture (the release does so over the batch). Without a
    prompt, or where all tokens are equally relevant, r = 1, which is pure diversity.

    Features of rank below K: once what is left has no variance of its own, the first tokens in order are taken.

    Attributes:
        theta: in [0, 1), replaces r by exp(theta / (2 (1 - theta)) * r); None: r itself.
        negative: the other sign, which the release gives to cosines of CLIP's towers, because its patches resemble
            texts of what they do not show. Word embeddings have no such habit, and the port leaves the sign alone too.
    """

    early = True
    needs = ("features", "words")
    paper = "CDPruner, NeurIPS 2025, arXiv 2506.10967"
    objective = "both"

    theta: float | None = None
    negative: bool = False

    def __post_init__(self) -> None:
        if self.theta is not None:
            check_number("theta", self.theta, 0, 1, end=False)
        check_flag("negative", self.negative)

    @torch.no_grad()
    def select(self, view: SpanView, budget: Budget) -> Selection:
        wide = torch.float64 if view.visual.device.type == "cpu" else torch.float32
        units = unit_rows(view.visual)
        similar, r = cosines(units, units).to(wide), self._relevance(view, units)
        if self.theta is None:
            indices = greedy(similar, r.float().to(wide), budget.K)
        else:
            bonus = self.theta / (1 - self.theta) * r.to(wide)
            indices = greedy(similar, torch.ones_like(bonus), budget.K, bonus)
        return Selection(indices, torch.zeros_like(indices, dtype=torch.bool))

    def _relevance(self, view: SpanView, units: Tensor) -> Tensor:
        """(B, N), 0..1."""
        words = unit_rows(view.prompt)
        if not words.shape[1]:
            return torch.ones_like(units[..., 0])
        similar = cosines(units, words).double() if units.device.type == "cpu" else cosines(units, words)
        real = torch.ones_like(words[..., 0], dtype=torch.bool) if view.prompt_mask is None else view.prompt_mask
        count = real.sum(1, keepdim=True)
        mean = similar.masked_fill(~real[:, None], 0.0).sum(2) / count.clamp_min(1)
        r = -mean if self.negative else mean
        low, high = r.amin(1, keepdim=True), r.amax(1, keepdim=True)
        flat = high - low < _EPSILON  # all alike, or nothing asked
        return torch.where(flat, torch.ones_like(r), (r - low + _EPSILON) / (high - low).masked_fill(flat, 1.0))


def greedy(similar: Tensor, r: Tensor, K: int, bonus: Tensor | None = None) -> Tensor:
    """Greedy MAP with the fast update of the Cholesky factor: (B, N, N), (B, N) -> int64 (B, K), ascending.

    ``bonus`` (B, N) stands for a further factor exp(bonus / 2) of r, which may be too large for any float. It only
    scales a token's variance, so that its logarithm need not leave the exponent.
    """
    batch, size = r.shape
    own = r * r * similar.diagonal(dim1=1, dim2=2)
    variance, factor = own.clone(), r.new_zeros(batch, K, size)
    taken = torch.zeros_like(r, dtype=torch.bool)
    for step in range(K):
        variance = variance.where(variance > TOLERANCE * own, 0.0)
        worth = variance if bonus is None else (variance.log() + bonus).clamp_min(torch.finfo(r.dtype).min)
        new = worth.masked_fill(taken, TAKEN).argmax(1, keepdim=True)
        best = variance.gather(1, new)
        taken = taken.scatter(1, new, True)
        row = similar.gather(1, new[..., None].expand(-1, -1, size))[:, 0] * r * r.gather(1, new)
        known = factor[:, :step].gather(2, new[:, None].expand(-1, step, -1))
        rest = row - (known * factor[:, :step]).sum(1)
        part = torch.where(best > 0, rest / best.clamp_min(torch.finfo(r.dtype).tiny).sqrt(), 0.0)
        factor[:, step] = part
        variance = variance - part * part
    return places_of(taken, K)
