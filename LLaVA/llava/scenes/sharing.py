"""Many rules asked about the same batch: what pruning leaves alone is computed once.

A decoder of six layers that is pruned at the third does its dearest work before that, and under every rule the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from llava.scenes.checkpoint import NUM_PATCHES
from mob import MoBConfig
from mob.methods import needs_of
from mob.methods.base import Depth
from mob.stages import schedule


class Shared:
    """What modules of one model said of the last batch.

    ``shared = Shared(model)``, then ``with shared.under(settings):`` around a pass that is pruned with these settings.
    Layers that answer from memory write nothing into a cache, so a pass with one is refused (ValueError).
    """

    def __init__(self, model: nn.Module) -> None:
        self.tower, self.layers = model.model.vision_tower, model.model.language_model.layers
        self.said: dict[nn.Module, tuple[Tensor, Tensor | None, object]] = {}

    @contextmanager
    def under(self, settings: MoBConfig | None) -> Iterator[None]:
        """Modules that these settings leave alone answer from memory where their input is that of the last time."""
        alone = self.left_alone(settings)
        for module in alone:
            module.forward = self._remembering(module)
        try:
            yield
        finally:
            for module in alone:
                del module.forward

    def left_alone(self, settings: MoBConfig | None) -> list[nn.Module]:
        """The vision tower, unless a rule watches it at work, and the decoder layers before the first that prunes."""
        early, late = settings.rules() if settings else ([], None)
        if any("tower" in needs_of(one.rule) for one in early):
            return []
        if early:  # the decoder is given fewer tokens
            return [self.tower]
        if late is None:
            return [self.tower, *self.layers]
        depth = Depth(len(self.layers), asked=settings.l_idx)
        first, _ = schedule(late.rule, NUM_PATCHES, settings.budget(NUM_PATCHES).K, depth)[0]
        return [self.tower, *self.layers[:first]]

    def _remembering(self, module: nn.Module):
        look = module.forward

        def forward(first: Tensor, **kwargs):
            if kwargs.get("past_key_values") is not None:
                raise ValueError("a pass that shares layers with others can fill no cache: call with use_cache=False")
            mask = kwargs.get("attention_mask")
            seen, seen_mask, said = self.said.get(module, (None, None, None))
            if not (_same(seen, first) and _same(seen_mask, mask)):
                said = look(first, **kwargs)
                self.said[module] = first, mask, said
            return said

        return forward


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b or (a is not None and b is not None and torch.equal(a, b))
