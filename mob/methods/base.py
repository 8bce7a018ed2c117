"""What a rule sees, what it must offer, and the registry that knows rules by name."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor

from mob.budget import Budget, check_keep
from mob.covering import Selection

if TYPE_CHECKING:  # rules never import the mechanism
    from mob.probe import Probe

DEFAULT_LAYER = 2
WITHIN, BEFORE = ("hidden states", "prompt"), ("features", "words")  # what every view holds, see ``looks_at``


@dataclass(frozen=True)
class TowerView:
    """What the vision tower says of each token, for rules that name "tower" in ``needs``.

    All is of the layer whose output the model projects. A token that shows several patches has their mean.

    Attributes:
        scores: (B, N) attention that its patch gets: from the CLS token, mean over heads; of towers without one, the
            mean over all tokens of its view (our substitute). 0 for tokens that the tower never saw (newlines).
        keys: (B, N, d_k) keys of that layer, mean over heads, before rotation; 0 for newlines.
        hidden: (B, N, d_v) what the projector is given for each token; 0 for newlines.
        placed: bool (B, N), False for newlines.
        cls: (B, d_v) the CLS token of the picture's first view; NaN where it is one of the visual tokens itself; None
            where the tower has none.
        project: the model's projector, (..., d_v) -> (..., d).
    """

    scores: Tensor
    keys: Tensor
    hidden: Tensor
    placed: Tensor
    cls: Tensor | None
    project: Callable[[Tensor], Tensor]


class Merged(NamedTuple):
    """A ``Selection`` whose tokens have new values: ``features`` (B, K, d) go to the places ``indices`` (B, K).

    A merged token takes the place of one of its members: the position, and the cell in records.
    """

    indices: Tensor
    prompt_center: Tensor
    features: Tensor


class Adapted(NamedTuple):
    """A selection whose numbers a rule has found for each picture.

    Attributes:
        indices, prompt_center: as of a ``Selection``.
        real: bool (B, K), False for entries that are not kept; None: all are.
        asked: what was asked for or measured, one number a picture, (B,) each: "eta", "weight", "K_p", "k".
    """

    indices: Tensor
    prompt_center: Tensor
    real: Tensor | None
    asked: dict[str, Tensor]


class Recycled(NamedTuple):
    """A selection in which dropped tokens live on: kept ones become means.

    Attributes:
        indices, prompt_center: as of a ``Selection``.
        into: (B, N) int64, the kept token whose mean a token is part of (its own index for a kept one), -1 for none.
    """

    indices: Tensor
    prompt_center: Tensor
    into: Tensor


@dataclass(frozen=True)
class SpanView:
    """What a rule may look at: the samples of a batch that share one budget.

    Attributes:
        visual: (B, N, d) hidden states of the visual tokens at the entry of the stage's layer, in sequence order.
        prompt: (B, L, d) hidden states of the prompt tokens, padded at the end; L may be 0.
        prompt_mask: (B, L) bool, True = real; None when nothing is padded.
        metric: "cosine" or "euclidean".
        tower: for early rules that name "tower" in ``needs``.
        cells: for early rules that name "cells": per sample, (picture, view, row, column) of each token; a newline has
            column -1, a token without a place row -1 too.
        probe: within the decoder, answers questions about attention, keys and earlier states; there where the rule's
            ``needs`` name what it answers.
    """

    visual: Tensor
    prompt: Tensor
    prompt_mask: Tensor | None = None
    metric: str = "cosine"
    tower: TowerView | None = None
    cells: Sequence[Sequence[tuple[int, int, int, int]]] | None = None
    probe: Probe | None = None


class Rule(Protocol):
    """A pruning rule: a frozen dataclass whose fields are its options.

    Class attributes say what it is (``python -m mob.methods`` lists them): ``paper``, ``objective`` ("alignment",
    "preservation" or "both"), ``needs``, all that it looks at: of what every view holds "hidden states" and "prompt",
    before the decoder "features" and "words"; what ``mob.probe`` answers; and where that is not one layer that the user
    chooses, ``where`` and the number of ``stages``. Samples of a batch are answered as they would be alone, unless
    ``batch = False`` says otherwise.

    ``balanced = True`` says that a rule follows K_p and k of its budget; of others, records count the prompt centres.

    A rule with ``plan(N, K, depth) -> [(layer, tokens left), ...]`` has a schedule of its own, one or several stages;
    each asks ``select`` with what the stage before left as N. ``select`` may answer with ``Recycled``; in its last
    stage with ``Ragged`` or ``Adapted``, of which fewer than K are kept.

    A rule with ``early = True`` works before the decoder, on projected features and word embeddings. It may answer with
    ``keep(view, budget) -> bool (B, N)`` instead of ``select``; where ``adaptive`` is true it decides itself how many.
    Its ``select`` may answer with ``Merged``. ``needs`` may name what it must be shown besides: "tower", "cells".
    ``merges = True``: tokens that stay may stand for several, so that no rule behind it can look at the tower's own.
    """

    name: str

    def select(self, view: SpanView, budget: Budget) -> Selection:
        """Exactly ``budget.K`` distinct ascending indices per sample, (B, K), and which of them are prompt centres."""


class Depth(NamedTuple):
    """What a rule with several stages may know of a decoder: its layers, the first that may prune, and the layer that
    the user asked for (None: none)."""

    layers: int
    first: int = 1
    asked: int | None = None

    @property
    def layer(self) -> int:
        """Where a rule with one stage works: 2 unless asked otherwise, or the first layer that allows it."""
        return max(DEFAULT_LAYER, self.first) if self.asked is None else self.asked

    def check(self, layer: int) -> None:
        """ValueError for a layer where tokens cannot leave."""
        if not self.first <= layer < self.layers:
            raise ValueError(f"layer={layer}: this model can be pruned at layers {self.first} to {self.layers - 1}")


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


class Named(NamedTuple):
    """A rule by its name, and how many tokens it keeps where its options say so."""

    name: str
    rule: Rule
    K: int | float | None


def parse(method: str, options: Mapping[str, Any] | None = None) -> tuple[list[Named], Named | None]:
    """The rules of "first+second+last": those before the decoder, and the one within it, if there is one.

    Options of a single rule are its own; of several, ``options[name]`` are those of each, and K in them says how many
    tokens a rule keeps that is not the last (None: nothing is said).

    Raises:
        ValueError: an unknown rule or option, or rules in an order that cannot be.
    """
    names = str(method).split("+")
    several = len(names) > 1
    if several and (strange := set(options or {}) - set(names)):
        raise ValueError(
            f"options[{sorted(strange)[0]!r}]: of several rules, give options by the rules' names: {names}"
        )
    rules = []
    for name in names:
        own = dict((options or {}).get(name) or {}) if several else dict(options or {})
        K = own.pop("K", None) if several else None
        if K is not None:
            check_keep(K)
        rules.append(Named(name, create(name, own), K))
    early = [one for one in rules if is_early(one.rule)]
    late = [one for one in rules if not is_early(one.rule)]
    if len(late) > 1 or rules != early + late:
        raise ValueError(f"method={method!r}: name rules before the decoder first, and at most one within it, last")
    if rules[-1].K is not None:
        raise ValueError(f"method={method!r}: K of its last rule is the K beside method, not in options")
    return early, late[0] if late else None


def is_early(rule: Rule) -> bool:
    """Whether a rule works on features of pictures, before the decoder."""
    return getattr(rule, "early", False)


def own_layers(method: str) -> bool:
    """Whether the last rule of "first+second+last" prunes at several layers of its own, so that none can be chosen."""
    return getattr(_last(method), "stages", 1) > 1


def before_only(method: str) -> bool:
    """Whether all rules of "first+second+last" prune before the decoder, so that no layer can be chosen."""
    return getattr(_last(method), "early", False) is True


def balanced(method: str) -> bool:
    """Whether the last rule of "first+second+last" follows K_p and k."""
    return getattr(_last(method), "balanced", False)


def _last(method: str) -> type | None:
    """The class of the last rule of "first+second+last", None for an unknown one."""
    return METHODS.get(method.split("+")[-1])


def check_order(early: Sequence[Named]) -> None:
    """ValueError where a rule asks the tower about tokens that a rule before it has merged."""
    for number, one in enumerate(early):
        first = next((other for other in early[:number] if getattr(other.rule, "merges", False)), None)
        if first is not None and "tower" in needs_of(one.rule):
            raise ValueError(
                f"{one.name} looks at what the vision tower says of each token, and {first.name} before it merges "
                "tokens: put it first"
            )


def looks_at(rule: Rule | type) -> tuple[str, ...]:
    """All that a rule looks at; of one that does not say, what every view holds."""
    return getattr(rule, "needs", BEFORE if is_early(rule) else WITHIN)


def needs_of(rule: Rule) -> tuple[str, ...]:
    """What a rule needs besides what every view holds."""
    return tuple(one for one in looks_at(rule) if one not in WITHIN + BEFORE)


def create(name: str, options: Mapping[str, Any] | None = None) -> Rule:
    """The rule of that name. ValueError with a suggestion for an unknown name or option."""
    if name not in METHODS:
        raise ValueError(unknown(name))
    cls = METHODS[name]
    known = [f.name for f in dataclasses.fields(cls)]
    for option in options or {}:
        if option not in known:
            close = difflib.get_close_matches(str(option), known, n=1, cutoff=0.6)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"rule {name!r} has no option {option!r}; its options: {', '.join(known) or 'none'}{hint}")
    return cls(**(options or {}))


def unknown(name: object) -> str:
    """What to say of a name that no rule has."""
    close = difflib.get_close_matches(str(name).lower(), list(METHODS), n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known rules: {', '.join(sorted(METHODS))}"
    return f"no pruning rule named {name!r}: {hint}"


def highest(scores: Tensor, K: int) -> Selection:
    """The K highest scores of each row, (B, N) -> (B, K) ascending; of equal ones the first."""
    indices = scores.sort(dim=1, descending=True, stable=True).indices[:, :K].sort(1).values
    return Selection(indices, torch.zeros_like(indices, dtype=torch.bool))
