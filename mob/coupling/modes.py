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

FEWEST = 20  # values, below which nothing is said of modes
SMALLEST = 0.1  # share of the values that a mode has at least
DEEPEST = 0.7  # density between the modes over that of the lower one, where there are two
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
        if self.valley > DEEPEST:
            return f"the density between the parts is {self.valley:.2f} of the lower peak, more than {DEEPEST}"
        return None

    @property
    def separated(self) -> bool:
        """Whether there are two modes."""
        return self.reason is None


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
        valley=_valley(data, float(low.mean()), float(high.mean())),
    )


def _valley(data: np.ndarray, low: float, high: float) -> float:
    """How deep a Gaussian kernel density dips between two means; Silverman's bandwidth."""
    quarters = np.percentile(data, [25, 75])
    width = min(data.std(), float(quarters[1] - quarters[0]) / 1.34) or data.std()
    width *= 0.9 * len(data) ** -0.2
    grid = np.linspace(data[0] - width, data[-1] + width, 256)
    density = np.exp(-(((grid[:, None] - data) / width) ** 2) / 2).sum(1)
    inside = np.flatnonzero((grid >= low) & (grid <= high))
    if not len(inside):
        return 1.0
    bottom = int(inside[density[inside].argmin()])
    return float(density[bottom] / min(density[: bottom + 1].max(), density[bottom:].max()))
