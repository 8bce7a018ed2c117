"""What a stage within the decoder leaves: its rule is shown the visual tokens that arrive, picture by picture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from mob import probe
from mob.anatomy import Anatomy
from mob.covering import Ragged
from mob.methods import SpanView, needs_of
from mob.methods.base import Adapted, Recycled
from mob.plan import Plan
from mob.stages import Stage, by_budget, view_of
from mob.tensors import on_device, places_of


@dataclass(frozen=True)
class Arriving:
    """What is there at the entry of a stage's layer.

    Attributes:
        hidden: (B, S, d); visual, real, prompt: bool (B, S).
        places: (B, n) where the visual tokens are, in order; entries beyond a row's own point anywhere.
        prompt_counts: prompt tokens of each sample, known on the host.
        source: what probes read; None where the rule asks for nothing.
    """

    hidden: Tensor
    visual: Tensor
    real: Tensor
    prompt: Tensor
    places: Tensor
    prompt_counts: list[int]
    source: probe.Source | None

    def view(self, places: Tensor, samples: list[int], metric: str) -> SpanView:
        """The visual tokens at ``places`` (n, N) of some samples, and their prompts."""
        return view_of(self.hidden, places, self.prompt, self.prompt_counts, samples, metric)


@dataclass
class Choice:
    """What a stage leaves.

    Attributes:
        keep, centres: bool (B, S), tokens that stay (text too), and prompt centres among them.
        into: (B, S) what is merged into what (see ``Cut``), None where nothing is.
        ragged: fewer may stay than the budgets say, and only the device knows how many.
        asked: what the rule has measured, for groups of pictures given as (sample, first of its tokens).
    """

    keep: Tensor
    centres: Tensor
    into: Tensor | None = None
    ragged: bool = False
    asked: list[tuple[list[tuple[int, int]], dict[str, Tensor]]] = field(default_factory=list)


def arrive(anatomy: Anatomy, plan: Plan, stage: Stage, noted: probe.Noted) -> Arriving:
    """Everything that a stage's rule may look at."""
    hidden, spans = noted.hidden, plan.spans
    # A dispatched model may hold this layer on another device than the input.
    masks = (spans.visual, spans.real, spans.prompt)
    visual, real, prompt = (plan.seen(mask, stage.layer).to(hidden.device) for mask in masks)
    places = places_of(visual, max(budget.N for budget in stage.budgets))
    source = None
    if needs_of(stage.rule):
        # As if nothing left here: the layer's own mask and positions for all that arrives.
        here = probe.Noted(hidden, plan.shorten(stage.layer, noted.kwargs, anatomy.flash))
        before, bottom = plan.notes.get(stage.layer - 1), plan.notes.get(0)
        source = probe.Source(anatomy, stage.layer, before, here, bottom, spans, visual, prompt)
    return Arriving(hidden, visual, real, prompt, places, spans.prompt_counts, source)


def choose(stage: Stage, there: Arriving) -> Choice:
    """Ask the rule, once per group of pictures with equal budgets."""
    device = there.hidden.device
    choice = Choice(keep=there.real & ~there.visual, centres=torch.zeros_like(there.visual))
    for budget, members in by_budget(stage.parts).items():
        rows, starts = on_device(members, device).T[..., None]
        at = there.places[rows, starts + torch.arange(budget.N, device=device)]
        if budget.identity:
            choice.keep[rows, at] = True
            continue
        samples = [sample for sample, _ in members]
        view = there.view(at, samples, stage.metric)
        if there.source is not None:
            view = replace(view, probe=probe.probes(there.source, samples, at, there.prompt_counts))
        _add(choice, stage.rule.select(view, budget), rows, at, members)
    return choice


def _add(choice: Choice, selection: tuple, rows: Tensor, at: Tensor, members: list[tuple[int, int]]) -> None:
    """Enter what a rule has chosen among the tokens at ``at`` (n, N) of ``rows`` (n, 1)."""
    kept = at.gather(1, selection.indices)
    stays = True
    if isinstance(selection, Recycled):
        if choice.into is None:
            choice.into = torch.full(choice.keep.shape, -1, device=at.device)
        choice.into[rows, at] = at.gather(1, selection.into.clamp_min(0)).masked_fill(selection.into < 0, -1)
    if isinstance(selection, Adapted):
        choice.asked.append((members, selection.asked))
    if isinstance(selection, (Adapted, Ragged)) and selection.real is not None:
        stays, choice.ragged = selection.real, True
    choice.keep[rows, kept] = stays
    choice.centres[rows, kept] = selection.prompt_center


def by_sample(stage: Stage, there: Arriving, choice: Choice) -> Iterator[tuple[list[int], SpanView, Ragged]]:
    """What was kept of each sample, its pictures taken together: samples with equal budgets, what their rule saw, and
    the selection among it."""
    for budget in dict.fromkeys(b for b in stage.budgets if not b.identity):
        members = [i for i, b in enumerate(stage.budgets) if b == budget]
        rows = on_device(members, there.hidden.device)
        at = there.places[rows, : budget.N]
        keep, centres = (mask[rows].gather(1, at) for mask in (choice.keep, choice.centres))
        indices = places_of(keep, budget.K)
        selection = Ragged(indices, centres.gather(1, indices), keep.gather(1, indices))
        yield members, there.view(at, members, stage.metric), selection
