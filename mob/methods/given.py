"""A choice that is known already: to repeat a logged one, or to try one by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import index

from mob.budget import Budget
from mob.covering import Selection
from mob.methods.base import SpanView, register
from mob.tensors import on_device


@register("given")
@dataclass(frozen=True)
class Given:
    """Keeps ``indices``, the same for every sample; set K to their number, and per_picture=False for several pictures.

    Attributes:
        indices: distinct, ascending, counted from 0, as in ``RetainedPatches.keep_indices``. None: the first K.
        prompt_center: for each of them, whether it counts as a prompt centre; None: none does.
    """

    paper = "no rule: a choice that was made before"
    objective = "given"
    needs = ()
    balanced = True  # fed back with the K_p and k of the settings that it was made with

    indices: Sequence[int] | None = None
    prompt_center: Sequence[bool] | None = None

    def __post_init__(self) -> None:
        try:
            list(map(index, () if self.indices is None else self.indices))
        except TypeError:
            raise ValueError(f"indices={self.indices!r}: give a list of integers, or None") from None

    def select(self, view: SpanView, budget: Budget) -> Selection:
        indices = list(range(budget.K)) if self.indices is None else list(self.indices)
        centres = [False] * len(indices) if self.prompt_center is None else list(self.prompt_center)
        if len(indices) != budget.K or len(centres) != budget.K:
            raise ValueError(
                f"{len(indices)} given indices, {len(centres)} prompt_center, where K={budget.K} of {budget.N} visual "
                "tokens are to be kept: set K to the number of indices, and per_picture=False for several pictures"
            )
        if indices != sorted(set(indices)) or indices[0] < 0 or indices[-1] >= budget.N:
            raise ValueError(f"the given indices must be distinct, ascending and from 0 to {budget.N - 1}")
        batch, device = view.visual.shape[0], view.visual.device
        kept = on_device(indices, device).expand(batch, -1)
        return Selection(kept, on_device(list(map(bool, centres)), device).expand(batch, -1))
