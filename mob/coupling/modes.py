"""Two modes of eta: a split of numbers in two, a test whether there are two, and the same while samples come in.

The paper leaves open how a sample's K_p follows from its eta. All here is ours: two means in one dimension (Otsu's
threshold, found exactly), a kernel density that must dip between them, and a running window of the last etas.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import numpy as np
import torch
from torch import Tensor

FEWEST = 50  # values, below which nothing is said of modes
SMALLEST = 0.1  # share of the values that a mode has at least
# Valleys that one in twenty samples of a uniform distribution stays below, by their size; simulated, 300 to 1500 each.
# Of distributions with one mode the uniform one is the hardest to tell from two, as for Hartigan's dip test.
_SIZES = (50, 100, 200, 400, 800, 1600, 3200)
_VALLEYS = (0.293, 0.401, 0.509, 0.603, 0.671, 0.738, 0.790)
AT_MEAN = 0.95  # weight at the mean of the upper mode, 1 - 0.95 at that of the lower


@dataclass(frozen=True)
class Modes:
    """A split of numbers in two.

    Attributes:
        tau: the threshold, half way between the two values at the cut.
        spread: of the logistic weight, so that it is 0.05 and 0.95 at the two means.
        low, high: means of the two parts.
        count: of all values; share: of those in the upper part.
        separation: distance of the means over the quadratic mean of the parts' standard deviations.
        valley: lowest density between the means over the lower of the two peaks beside it; 1: no dip.
    """

    tau: float
    spread: float
    low: float
    high: float
    count: int
    share: float
    separation: float
    valley: float

    @property
    def reason(self) -> str | None:
        """Why these are not two modes; None where they are."""
        if self.count < FEWEST:
            return f"{self.count} values, fewer than {FEWEST}"
        if not SMALLEST <= self.share <= 1 - SMALLEST:
            return f"one part has {100 * min(self.share, 1 - self.share):.0f} % of the values, less than a tenth"
        if self.valley > (most := critical_valley(self.count)):
            return (
                f"the density between the parts is {self.valley:.2f} of the lower peak, which one mode explains "
                f"(two, of {self.count} values: up to {most:.2f})"
            )
        return None

    @property
    def separated(self) -> bool:
        """Whether there are two modes."""
        return self.reason is None


def critical_valley(count: int) -> float:
    """How shallow a valley may be, of ``count`` values, if one mode is to be ruled out at 5 %."""
    return float(np.interp(math.log(count), np.log(_SIZES), _VALLEYS))


def split(values: Sequence[float]) -> Modes:
    """The best split of finite numbers in two, the one that leaves the least variance within the parts.

    Of equally good cuts the lowest. The order of the values does not matter.

    Raises:
        ValueError: no values, or some that are not finite.
    """
    data = np.sort(np.asarray(values, dtype=np.float64))
    if not len(data) or not np.isfinite(data).all():
        raise ValueError("eta of no sample, or one that is not finite: give numbers")
    count = len(data)
    if data[0] == data[-1]:
        return Modes(float(data[0]), 0.0, float(data[0]), float(data[0]), count, 0.0, 0.0, 1.0)
    below = np.arange(1, count)
    sums = np.cumsum(data)[:-1]
    means = sums / below, (data.sum() - sums) / (count - below)
    between = np.where(data[1:] > data[:-1], below * (count - below) * (means[1] - means[0]) ** 2, -1.0)
    cut = int(between.argmax()) + 1
    low, high = data[:cut], data[cut:]
    gap = float(high.mean() - low.mean())
    within = math.sqrt((low.var() + high.var()) / 2)
    return Modes(
        tau=float((low[-1] + high[0]) / 2),
        spread=gap / 2 / math.log(AT_MEAN / (1 - AT_MEAN)),
        low=float(low.mean()),
        high=float(high.mean()),
        count=count,
        share=len(high) / count,
        separation=gap / within if within else math.inf,
        valley=_valley(data, float(low.mean()), float(high.mean()), 0.9 * within),
    )


def _valley(data: np.ndarray, low: float, high: float, width: float) -> float:
    """How deep a Gaussian kernel density dips between two means; Silverman's bandwidth for the parts' deviation."""
    width = width * len(data) ** -0.2 or (data[-1] - data[0]) / 256
    grid = np.linspace(data[0] - width, data[-1] + width, 256)
    density = np.exp(-(((grid[:, None] - data) / width) ** 2) / 2).sum(1)
    inside = np.flatnonzero((grid >= low) & (grid <= high))
    if not len(inside):
        return 1.0
    bottom = int(inside[density[inside].argmin()])
    return float(density[bottom] / min(density[: bottom + 1].max(), density[bottom:].max()))


@dataclass
class OnlineSplit:
    """A running threshold over the etas of the last samples, without a calibration or around one.

    It depends on the order of the samples and on how they are batched: a pass uses what the passes before it have seen.
    ``add`` keeps tensors; ``settle`` brings them to the host, which by the next pass waits for nothing new.

    Attributes:
        tau0, spread0: calibrated ones, which hold until the warm-up is over; None: there is no threshold until then.
        window: how many of the last etas are looked at.
        warm_up: how many must have come before the threshold may move. It moves where every second eta of the window
            shows two modes, and so do those between: what is tested again and again needs more than one test at 5 %.
        hysteresis: it moves only to where it is farther than this from the old one.
        drift: and never farther than this from ``tau0``, if there is one.
        tau, spread: the current ones. Where the window does not show two modes they stay; a calibrated tau keeps its
            spread.
    """

    tau0: float | None = None
    spread0: float | None = None
    window: int = 512
    warm_up: int = 128
    hysteresis: float = 0.01
    drift: float = 0.1
    tau: float | None = field(init=False)
    spread: float | None = field(init=False)
    _pending: deque = field(init=False, repr=False, default_factory=deque)
    _etas: deque = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("window", "warm_up"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 2 * FEWEST:
                raise ValueError(f"online: {name}={value!r}: give an integer, at least {2 * FEWEST}")
        if self.warm_up > self.window:
            raise ValueError(f"online: warm_up={self.warm_up} with window={self.window}: it would never be over")
        for name in ("hysteresis", "drift"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 2:
                raise ValueError(f"online: {name}={value!r}: give a distance of eta, between 0 and 2")
        self.tau, self.spread = self.tau0, self.spread0
        self._etas = deque(maxlen=self.window)

    def add(self, eta: Tensor) -> None:
        """Etas (B,) of a pass, on any device; NaN, where there is no prompt, is left out later."""
        self._pending.append(eta.detach())

    @torch.no_grad()
    def settle(self) -> tuple[float | None, float | None]:
        """tau and spread after all that was added; None where there are none yet."""
        fresh = False
        while self._pending:
            try:
                values = self._pending.popleft().tolist()
            except IndexError:  # another thread was faster
                break
            self._etas.extend(value for value in values if math.isfinite(value))
            fresh = True
        if fresh and len(self._etas) >= self.warm_up:
            self._move(list(self._etas))
        return self.tau, self.spread

    def _move(self, values: list[float]) -> None:
        modes = split(values)
        wanted = modes.tau
        if self.tau0 is not None:
            wanted = min(max(wanted, self.tau0 - self.drift), self.tau0 + self.drift)
        if self.tau is not None and abs(wanted - self.tau) <= self.hysteresis:
            return
        if modes.separated and split(values[::2]).separated and split(values[1::2]).separated:
            self.tau = wanted
            self.spread = modes.spread if self.tau0 is None else self.spread0


# What a user may set of it.
TUNABLE = tuple(one.name for one in fields(OnlineSplit) if one.init and not one.name.endswith("0"))
