"""Clocks, medians and exponents for ``bench.py``."""

from __future__ import annotations

import math
import re
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

_CLEAR = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Watch:
    """Times calls on one device: work that is queued there is waited for before and after.

    ``process``: count seconds of this process on all its threads instead of seconds on the wall, which on a shared
    machine hold the others' work too. Of no use on accelerators.
    """

    device: torch.device
    process: bool = False

    def now(self) -> float:
        """Seconds, once the device has nothing left to do."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.process_time() if self.process else time.perf_counter()

    def milliseconds(self, call: Callable[[], Any]) -> float:
        start = self.now()
        result = call()
        stop = self.now()
        del result  # after the clock: freeing a cache is not part of making it
        return (stop - start) * 1000

    def held(self) -> int | None:
        """Bytes in use now: allocated on CUDA, resident in this process on Linux; None elsewhere."""
        return torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else _resident("VmRSS")

    def peak(self, call: Callable[[], Any]) -> int | None:
        """Bytes that were in use at most during the call, weights included; None where nobody counts them."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif _CLEAR.exists():
            _CLEAR.write_text("5")  # the high-water mark begins anew
        call()
        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else _resident("VmHWM")


def _resident(field: str) -> int | None:
    """A line of Linux's /proc/self/status, in bytes."""
    if not _CLEAR.exists():
        return None
    (kilobytes,) = re.findall(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(kilobytes)


def summary(values: Iterable[float | None]) -> dict[str, float] | None:
    """Median and interquartile range; None where nothing was measured."""
    numbers = [value for value in values if value is not None]
    if not numbers:
        return None
    low, _, high = quartiles(numbers)
    return {"median": statistics.median(numbers), "low": low, "high": high, "n": len(numbers)}


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) == 1:
        return (values[0],) * 3
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def ratios(above: Sequence[float], below: Sequence[float]) -> dict[str, float] | None:
    """Summary of ratios of neighbours in time, which a slow minute of the machine changes less than their medians."""
    return summary(a / b for a, b in zip(above, below, strict=True) if b > 0)


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The p of value ~ size^p, by least squares on logarithms. ValueError with fewer than two sizes, or at zero."""
    if len(set(sizes)) < 2 or min(*sizes, *values) <= 0:
        raise ValueError("an exponent needs two sizes at least, and positive numbers")
    x, y = [math.log(size) for size in sizes], [math.log(value) for value in values]
    return statistics.linear_regression(x, y).slope
