"""MMTok (ICLR 2026, arXiv 2508.18264): tokens that cover the question's words and all visual tokens together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mob.budget import Budget
from mob.coverage import cover, on_grid
from mob.covering import Selection, cosines, unit_rows
from mob.methods.base import SpanView, register
from mob.methods.options import check_number

TEMPERATURES = (0.001, 1000)  # colder, a softmax only knows its largest entry; hotter, all are equal on the grid
MOST = 1e6  # beyond, next to nothing is left of the prompt


@register("mmtok")
@dataclass(frozen=True)
class MMTok:
    """Greedy maximum of the mean coverage of the prompt plus ``alpha`` times the mean coverage of the picture.

    A token covers a word, or another token, with its share in a softmax of cosines over all visual tokens; each word
    and each token counts its best. Temperatures and weight are those of the authors' code. It differs from here in what
    it looks at: the vision tower's features before the projector for the picture's part, and for the prompt's only the
    key words of the question; here both use features in the language model's space, and all words that a rule may see.
    Without a prompt, the picture alone.

    Attributes:
        tau_text, tau_visual: temperatures of the two softmaxes, 0.001 to 1000.
        alpha: weight of the picture, at most a million.
    """

    early = True
    needs = ("features", "words")
    paper = "MMTok, ICLR 2026, arXiv 2508.18264"
    objective = "both"

    tau_text: float = 0.02
    tau_visual: float = 0.2
    alpha: float = 0.5

    def __post_init__(self) -> None:
        for name in ("tau_text", "tau_visual"):
            check_number(name, getattr(self, name), *TEMPERATURES)
        check_number("alpha", self.alpha, 0, MOST)

    @torch.no_grad()
    def select(self, view: SpanView, budget: Budget) -> Selection:
        units, words = unit_rows(view.visual), unit_rows(view.prompt)
        shares = _shares(cosines(units, units), self.tau_visual)
        blocks, weights = [shares], [torch.full_like(units[:, :1, 0], self.alpha / budget.N, dtype=torch.float32)]
        count = words.shape[1] * torch.ones_like(weights[0])
        if words.shape[1]:
            asked = _shares(cosines(words, units), self.tau_text)
            if view.prompt_mask is not None:
                asked = asked.masked_fill(~view.prompt_mask[..., None], 0)
                count = view.prompt_mask.sum(1, keepdim=True).float()
            blocks.append(asked)
            weights.append(1 / count.clamp_min(1))
        weights[0] = torch.where(count > 0, weights[0], 1.0)  # nothing else to go by
        indices = cover(blocks, weights, budget.K)
        return Selection(indices, torch.zeros_like(indices, dtype=torch.bool))


def _shares(similar: Tensor, temperature: float) -> Tensor:
    """Softmax of each row, on the grid."""
    return on_grid((similar / temperature).softmax(-1))
