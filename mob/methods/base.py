"""What a rule sees, what it must offer, and the registry that knows rules by name."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from mob.budget import Budget
from mob.covering import Selection


@dataclass(frozen=True)
class SpanView:
    """What a rule may look at: the samples of a batch that share one budget.

    Attributes:
        visual: (B, N, d) hidden states of the visual tokens at the entry of the stage's layer, in sequence order.
        prompt: (B, L, d) hidden states of the prompt tokens, padded at the end; L may be 0.
        prompt_mask: (B, L) bool, True = real; None when nothing is padded.
        metric: "cosine" or "euclidean".
    """

    visual: Tensor
    prompt: Tensor
    prompt_mask: Tensor | None = None
    metric: str = "cosine"


class Rule(Protocol):
    """A pruning rule: a frozen dataclass whose fields are its options."""

    name: str

    def select(self, view: SpanView, budget: Budget) -> Selection:
        """Exactly ``budget.K`` distinct ascending indices per sample, (B, K), and which of them are prompt centres."""


METHODS: dict[str, type] = {}


def register(name: str) -> Callable[[type], type]:
    """Class decorator: make a rule available under ``name``."""

    def add(cls: type) -> type:
        if name in METHODS:
            raise ValueError(f"a rule named {name!r} is registered already ({METHODS[name].__module__})")
        cls.name = name
        METHODS[name] = cls
        return cls

    return add


def create(name: str, options: Mapping[str, Any] | None = None) -> Rule:
    """The rule of that name. ValueError with a suggestion for an unknown name or option."""
    if name not in METHODS:
        close = difflib.get_close_matches(str(name), list(METHODS), n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known rules: {', '.join(sorted(METHODS))}"
        raise ValueError(f"no pruning rule named {name!r}: {hint}")
    cls = METHODS[name]
    known = [f.name for f in dataclasses.fields(cls)]
    for option in options or {}:
        if option not in known:
            raise ValueError(f"rule {name!r} has no option {option!r}; its options: {', '.join(known) or 'none'}")
    return cls(**(options or {}))
