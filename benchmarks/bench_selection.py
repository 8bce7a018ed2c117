"""Selection alone, on tensors: against the plain ways to the same indices, and how it grows."""

from __future__ import annotations

from collections.abc import Callable
from unittest import mock

import torch
from bench_timing import Watch, exponent, ratios, summary
from torch import Tensor

from mob import covering
from mob.budget import budget
from mob.farthest import demanded_rows, gram_rows, loop

SIZES = ((576, 20, 64), (576, 60, 192), (2880, 20, 320), (2056, 30, 136), (11664, 60, 1166))  # N, L, K
WIDTH = 4096
_LONG = 5000  # milliseconds
PLAIN = {"gram": gram_rows, "rows": demanded_rows}
GROWTH = {
    "N": [(n, 20, 64) for n in (576, 1152, 2880, 5832, 11664, 23328)],
    "L": [(2880, length, 64) for length in (10, 40, 160, 640)],
    "K": [(2880, 20, k) for k in (32, 64, 128, 320, 640)],
}


def tokens(N: int, L: int, width: int, clustered: bool, device: torch.device, batch: int = 1) -> tuple[Tensor, Tensor]:
    """Visual (B, N, d) and prompt (B, L, d) in float32; clustered: about 50 tokens around each of N / 50 centres, as
    patches of one thing are."""
    generator = torch.Generator().manual_seed(0)
    visual = torch.randn(batch, N, width, generator=generator)
    if clustered:
        for sample in visual:
            centres = torch.randn(max(2, N // 50), width, generator=generator)
            sample.mul_(0.3).add_(centres[torch.randint(len(centres), (N,), generator=generator)])
    prompt = torch.randn(batch, L, width, generator=generator)
    return visual.to(device), prompt.to(device)


def ways(visual: Tensor, prompt: Tensor, K: int) -> dict[str, Callable[[], Tensor]]:
    """``mob.covering.select``, and the same function with its last step done plainly: normalisation, prompt centres,
    first distances and sorting are in all of them."""
    sizes = budget(visual.shape[1], K)

    def ours() -> Tensor:
        return covering.select(visual, prompt, sizes.K, sizes.K_p, sizes.k).indices

    def plain(rows: Callable) -> Callable[[], Tensor]:
        def sample(units: Tensor, taken: Tensor, distance: Tensor, K: int, steps: int, stop: None = None) -> Tensor:
            return loop(taken, distance, K, steps, rows(units))

        def call() -> Tensor:
            with mock.patch.object(covering, "sample", sample):
                return ours()

        return call

    return {"mob": ours, **{name: plain(rows) for name, rows in PLAIN.items()}}


def compare(watch: Watch, repeats: int, sizes: tuple = SIZES, width: int = WIDTH, batch: int = 1) -> list[dict]:
    """One row for each size and kind of data: milliseconds of the three ways, in turns, and ratios to ours."""
    out = []
    for N, L, K in sizes:
        for clustered in (False, True):
            visual, prompt = tokens(N, L, width, clustered, watch.device, batch)
            calls = ways(visual, prompt, K)
            found, times = _in_turns(calls, repeats, watch)
            data = "clustered" if clustered else "random"
            row = {"batch": batch, "N": N, "L": L, "K": K, "width": width, "data": data}
            row["ms"] = {name: summary(values) for name, values in times.items()}
            row["times_slower"] = {name: ratios(times[name], times["mob"]) for name in PLAIN}
            row["identical"] = all(torch.equal(found["mob"], other) for other in found.values())
            out.append(row)
    return out


def _in_turns(
    calls: dict[str, Callable[[], Tensor]], repeats: int, watch: Watch
) -> tuple[dict[str, Tensor], dict[str, list[float]]]:
    """What each call gives, and its milliseconds. The first turn warms up and is not counted, unless it is a long one:
    then it counts, and there is but one more."""
    found: dict[str, Tensor] = {}

    def turn() -> dict[str, float]:
        return {name: watch.milliseconds(lambda n=name, c=call: found.update({n: c()})) for name, call in calls.items()}

    first = turn()
    long = sum(first.values()) > _LONG
    turns = [first, turn()] if long else [turn() for _ in range(repeats)]
    return found, {name: [turn[name] for turn in turns] for name in calls}


def growth(watch: Watch, repeats: int, axes: dict[str, list] = GROWTH, width: int = WIDTH) -> list[dict]:
    """Time, and memory beyond what was held before, along one axis at a time, with exponents."""
    out = []
    for axis, sizes in axes.items():
        points = []
        for N, L, K in sizes:
            visual, prompt = tokens(N, L, width, False, watch.device)
            call = ways(visual, prompt, K)["mob"]
            call()
            before = watch.held()
            peak = watch.peak(call)
            milliseconds = summary(watch.milliseconds(call) for _ in range(repeats))
            beyond = None if peak is None else max(peak - before, 1)
            point = {"N": N, "L": L, "K": K, "ms": milliseconds, "peak_bytes": beyond}
            points.append(point)
        out.append({"axis": axis, "points": points, **exponents(axis, points)})
    return out


def exponents(axis: str, points: list[dict]) -> dict[str, float | None]:
    """Of time and memory over all points, and of time between the last two, where fixed costs matter least."""
    at = [point[axis] for point in points]
    times = [point["ms"]["median"] for point in points]
    peaks = [point["peak_bytes"] for point in points]
    return {
        "time_exponent": exponent(at, times),
        "time_exponent_of_last_two": exponent(at[-2:], times[-2:]),
        "memory_exponent": exponent(at, peaks) if all(peaks) else None,
    }
