"""What the stages before the decoder leave: each rule is shown the tokens that are there, and keeps or merges them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mob.budget import Budget
from mob.config import MoBConfig
from mob.coupling import hausdorff
from mob.layout import Cell
from mob.methods import Merged, Rule, SpanView, needs_of
from mob.spans import Spans
from mob.stages import by_budget, limited, view_of
from mob.tensors import on_device, places_of
from mob.tower import Placed


@dataclass(frozen=True)
class EarlyStage:
    """A rule before the decoder. ``K``: tokens to keep, a number or a share; None where the rule itself decides."""

    name: str
    rule: Rule
    K: int | float | None


def choose(
    stages: Sequence[EarlyStage],
    settings: MoBConfig,
    spans: Spans,
    embeds: Tensor,
    tower: Placed | None,
    record: bool,
) -> tuple[Tensor, Tensor, list[list[dict]]]:
    """bool (B, T), what stays of the visual tokens (and all else); the embeddings, where rules have merged tokens with
    their new values; and what to say of each stage, per sample."""
    alive = spans.visual.clone()
    counts = [[picture.length for picture in row] for row in spans.pictures]
    notes: list[list[dict]] = [[] for _ in counts]
    for stage in stages:
        before, sizes, whole = alive, counts, embeds
        alive, embeds = _stage(stage, settings, spans, embeds, tower, before, sizes)
        counts = _counts(before, alive, sizes)
        for sample, row in enumerate(counts):
            if not row:
                continue
            note = {"method": stage.name, "layer": 0, "N": sum(sizes[sample]), "K": sum(row)}
            if (epsilon := getattr(stage.rule, "epsilon", None)) is not None:
                note |= {
                    "epsilon": epsilon,
                    "K_max": sum(budget.K for budget in _parts(stage, settings, sizes)[sample]),
                }
            if record:  # how far the farthest dropped token is from what stays: the covering bound grows by this
                mine, left = whole[sample][before[sample]], embeds[sample][alive[sample]]
                note["radius"] = float(hausdorff(mine, left)) if len(left) else None
            notes[sample].append(note)
    keep = alive | ~spans.visual
    return (keep & ~_lonely(keep, spans) if settings.keep_newlines == "rows" else keep), embeds, notes


def _lonely(keep: Tensor, spans: Spans) -> Tensor:
    """bool (B, T): newlines of rows of which nothing is left; one that ends a whole picture goes with all of it."""
    out = torch.zeros(keep.shape, dtype=torch.bool)
    for sample, (kept, seen, pictures) in enumerate(zip(keep.tolist(), spans.seen, spans.originals, strict=True)):
        cells = [cell for number, picture in enumerate(pictures) for cell in picture.cells(number)]
        placed = list(zip((at for at, there in enumerate(seen) if there), cells, strict=True))
        left = [cell for at, cell in placed if kept[at] and cell.column >= 0]
        rows, whole = {cell[:3] for cell in left}, {cell.image for cell in left}
        for at, cell in placed:
            if cell.row >= 0 > cell.column:
                ends_picture = pictures[cell.image].views[cell.view].columns == 0
                out[sample, at] = cell.image not in whole if ends_picture else cell[:3] not in rows
    return out.to(keep.device)


def _stage(
    stage: EarlyStage,
    settings: MoBConfig,
    spans: Spans,
    embeds: Tensor,
    tower: Placed | None,
    alive: Tensor,
    counts: list[list[int]],
) -> tuple[Tensor, Tensor]:
    """What one rule leaves of the visual tokens that are still there, bool (B, T), and the embeddings after it."""
    device, needs = embeds.device, needs_of(stage.rule)
    places = places_of(alive, max((sum(row) for row in counts), default=0))
    cells = _cells(spans, places) if "cells" in needs else None
    out, after = torch.zeros_like(alive), embeds
    for budget, members in by_budget(_parts(stage, settings, counts)).items():
        rows, starts = on_device(members, device).T[..., None]
        at = places[rows, starts + torch.arange(budget.N, device=device)]
        if budget.identity and stage.K is not None:
            out[rows, at] = True
            continue
        samples = [sample for sample, _ in members]
        view = view_of(embeds, at, spans.prompt, spans.prompt_counts, samples, settings.distance_metric)
        shown = {"tower": tower.view(rows, at)} if tower is not None and "tower" in needs else {}
        if cells is not None:
            shown["cells"] = [cells[sample][start : start + budget.N] for sample, start in members]
        # Choices have no gradients; merged tokens hand theirs on to all that they are made of.
        with torch.set_grad_enabled(torch.is_grad_enabled() and getattr(stage.rule, "merges", False)):
            mask, merged = kept_mask(stage.rule, dataclasses.replace(view, **shown), budget)
        out[rows, at] = mask
        if merged is not None:
            after = after.clone() if after is embeds else after
            after[rows, at.gather(1, merged.indices)] = merged.features.to(after)
    return out, after


def _cells(spans: Spans, places: Tensor) -> list[list[Cell]]:
    """What each of the visual tokens at ``places`` (B, n) shows."""
    found = []
    for visual, pictures, row in zip(spans.visual.tolist(), spans.pictures, places.tolist(), strict=True):
        cells = iter([cell for number, picture in enumerate(pictures) for cell in picture.cells(number)])
        at = {place: next(cells) for place, there in enumerate(visual) if there}
        found.append([at[place] for place in row if place in at])
    return found


def kept_mask(rule: Rule, view: SpanView, budget: Budget) -> tuple[Tensor, Merged | None]:
    """bool (B, N), what a rule keeps, whether it names indices or answers with a mask; and new values, if it merges."""
    if hasattr(rule, "keep"):
        return rule.keep(view, budget), None
    chosen = rule.select(view, budget)
    mask = torch.zeros(view.visual.shape[:2], dtype=torch.bool, device=view.visual.device)
    stays = getattr(chosen, "real", None)
    mask = mask.scatter(1, chosen.indices, True if stays is None else stays)
    return mask, chosen if isinstance(chosen, Merged) else None


def _parts(stage: EarlyStage, settings: MoBConfig, counts: list[list[int]]) -> list[list[Budget]]:
    """The budgets of every sample's pictures, of which ``counts`` tokens are there."""
    if stage.K is None:  # the rule decides, of each picture on its own
        return [[Budget(N=n, K=n, K_p=0, k=1) for n in row] for row in counts]
    own = dataclasses.replace(settings, K=stage.K)
    return [own.parts(limited(stage.rule, own.budget(sum(row))), row) for row in counts]


def _counts(before: Tensor, after: Tensor, sizes: list[list[int]]) -> list[list[int]]:
    """How much is left of each picture."""
    out = []
    for was, now, row in zip(before.cpu(), after.cpu(), sizes, strict=True):
        out.append([int(part.sum()) for part in now[was].split(row)] if row else [])
    return out
