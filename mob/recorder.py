"""Collects what was kept. Tensors stay on the device until somebody reads ``records``: recording adds no wait."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from mob.budget import Budget
from mob.coupling import Radii, radii
from mob.covering import Ragged
from mob.layout import Origin, Picture, origin
from mob.methods import SpanView
from mob.record import RetainedPatches, number
from mob.spans import Spans


@dataclass
class Clock:
    """Milliseconds between start and stop: device time on CUDA, wall time elsewhere."""

    device: torch.device
    marks: list = field(default_factory=list)

    def mark(self) -> None:
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())

    def milliseconds(self) -> float:
        start, stop = self.marks
        if self.device.type == "cuda":
            stop.synchronize()
            return start.elapsed_time(stop)
        return (stop - start) * 1000


@dataclass
class _Group:
    """Samples with equal budgets."""

    members: list[int]
    selection: Ragged
    radii: Radii
    clock: Clock


@dataclass
class _Pass:
    """One forward pass; the stages and spans say the rest."""

    pictures: list[list[Picture]]
    stages: tuple
    method: str = "mob"
    depth: int = 0
    regime: str | None = None
    groups: list[_Group] = field(default_factory=list)
    asked: list[tuple[list[tuple[int, int]], dict[str, torch.Tensor]]] = field(default_factory=list)


class Recorder:
    """Passes of one pruning. A thread's notes go to the pass that this thread opened last."""

    def __init__(self) -> None:
        self._done: list[RetainedPatches] = []
        self._passes: list[_Pass] = []
        self._current = threading.local()

    def __deepcopy__(self, memo: dict) -> Recorder:
        return Recorder()  # a copied model starts with no records (and thread-local state cannot be copied)

    def __reduce__(self) -> tuple:
        return Recorder, ()

    def open(self, spans: Spans, stages: tuple, method: str, depth: int, regime: str | None) -> None:
        """A pass through a decoder of ``depth`` layers begins."""
        self._current.value = _Pass(spans.pictures, stages, method, depth, regime)
        self._keep_if_whole()

    @contextmanager
    def timed(self, device: torch.device, active: bool) -> Iterator[Clock]:
        clock = Clock(device)
        if active:
            clock.mark()
        yield clock
        if active:
            clock.mark()

    def note(self, members: list[int], view: SpanView, selection: Ragged, clock: Clock) -> None:
        """A stage has chosen for some samples of the current pass."""
        measured = radii(view.visual, view.prompt, view.prompt_mask, *selection)
        self._current.value.groups.append(_Group(members, selection, measured, clock))
        self._keep_if_whole()

    def ask(self, pictures: list[tuple[int, int]], asked: dict[str, torch.Tensor]) -> None:
        """A rule has found numbers for some pictures, given as (sample, first of its tokens)."""
        self._current.value.asked.append((pictures, asked))

    def _keep_if_whole(self) -> None:
        """A pass counts once every stage has chosen: one that failed before, or still runs, has no records."""
        one = self._current.value
        choices = sum(not budget.identity for stage in one.stages for budget in stage.budgets)
        if sum(len(group.members) for group in one.groups) == choices:
            self._passes.append(one)

    def records(self) -> list[RetainedPatches]:
        while self._passes:
            self._done += _finish(self._passes.pop(0))
        return self._done

    def clear(self) -> None:
        self._done, self._passes = [], []


def _finish(one: _Pass) -> list[RetainedPatches]:
    """Bring one pass to the host."""
    chosen = {}
    for group in one.groups:
        rows = zip(*(part.tolist() for part in group.selection), strict=True)
        entries = [[(i, c) for i, c, real in zip(*row, strict=True) if real] for row in rows]
        measured = [part.tolist() for part in group.radii]
        milliseconds = group.clock.milliseconds()
        for at, sample in enumerate(group.members):
            # A later stage chooses among what the stages before it have left.
            left = chosen[sample][0] if sample in chosen else None
            kept = [left[i] if left else i for i, _ in entries[at]]
            before = chosen[sample][3] if left else 0
            chosen[sample] = (
                kept,
                [c for _, c in entries[at]],
                [number(part[at]) for part in measured],
                before + milliseconds,
            )
    asked, out = _asked(one), []
    for sample, pictures in enumerate(one.pictures):
        source = origin(pictures)
        budget, layer, method = _last(one, sample, source)
        everything = list(range(len(source.cells))), [False] * len(source.cells), [None] * 3, None
        indices, centres, (eta, eps_p, eps_v), milliseconds = chosen.get(sample, everything)
        kept = [source.cells[i] for i in indices]
        adaptive = _adaptive(one, sample, asked.get(sample, {})) if sample in chosen else {}
        balanced = bool(one.stages) and getattr(one.stages[-1].rule, "balanced", False)
        K_p, k = (budget.K_p, budget.k) if balanced else (sum(centres), 1)
        if "K_p" in adaptive:
            K_p, k = sum(adaptive["K_p"]), max(adaptive["k"])
        out.append(
            RetainedPatches(
                keep_indices=[source.numbers[i] for i in indices],
                prompt_center=centres,
                image=[cell.image for cell in kept],
                view=[cell.view for cell in kept],
                row=[cell.row for cell in kept],
                column=[cell.column for cell in kept],
                grids=source.grids,
                stages=source.stages + _earlier(one, sample),
                depth=one.depth,
                N=source.N,
                K=len(indices),
                K_p=K_p,
                k=k,
                layer=layer,
                method=method,
                eta=eta,
                eps_p=eps_p,
                eps_v=eps_v,
                milliseconds=milliseconds,
                adaptive=adaptive,
            )
        )
    return out


def _asked(one: _Pass) -> dict[int, dict[str, list]]:
    """What a rule has found for the pictures of each sample, in their order."""
    found: dict[tuple[int, int], dict[str, float]] = {}
    for pictures, numbers in one.asked:
        for name, values in numbers.items():
            for picture, value in zip(pictures, values.tolist(), strict=True):
                found.setdefault(picture, {})[name] = number(value)
    out: dict[int, dict[str, list]] = {}
    for sample, start in sorted(found):
        for name, value in found[sample, start].items():
            out.setdefault(sample, {}).setdefault(name, []).append(value)
    return out


def _adaptive(one: _Pass, sample: int, asked: dict[str, list]) -> dict:
    """What a budget that adapts was set to, and came to; {} where none does."""
    stage = one.stages[-1]
    out = {"regime": one.regime} | {name: getattr(stage.rule, name, None) for name in ("tau", "spread", "epsilon")}
    if out["tau"] is None:
        del out["spread"]
    if out["epsilon"] is not None:
        out["K_max"] = stage.budgets[sample].K
    return {name: value for name, value in out.items() if value is not None} | asked


def _earlier(one: _Pass, sample: int) -> list[dict]:
    """The stages within the decoder before the last, where a sample has lost tokens."""
    budgets = [(stage, stage.budgets[sample]) for stage in one.stages[:-1]]
    return [
        {"method": stage.rule.name, "layer": stage.layer, "N": budget.N, "K": budget.K}
        for stage, budget in budgets
        if not budget.identity
    ]


def _last(one: _Pass, sample: int, source: Origin) -> tuple[Budget, int, str]:
    """Budget, layer and rule of the last stage that a sample went through."""
    if one.stages:
        stage = one.stages[-1]
        return stage.budgets[sample], stage.layer, stage.rule.name
    count = len(source.numbers)
    early = source.stages[-1]["method"] if source.stages else one.method
    return Budget(N=source.N, K=count, K_p=0, k=1), 0, early
