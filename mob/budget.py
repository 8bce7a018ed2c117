"""How many tokens to keep: (N, K or ratio, schedule) -> integers K, K_p, k. The only place where budgets are rounded.

The paper prints schedules for keep shares of 1/3, 2/9 and 1/9 (K = 192, 128, 64 of 576). Other shares interpolate
K_p / K linearly and hold the ends. Everything is rounded half up, computed in exact fractions.

==========  ====================  ===================
schedule    K_p / K at 1/9 2/9 1/3    k
==========  ====================  ===================
"default"   1/2   3/8   1/3       K_p / 8
"strong"    3/8   1/4   1/4       3 K_p / 40
"weak"      1/2   7/16  5/12      K_p / 8
==========  ====================  ===================

"default" is the paper's setting without a prior on eta. The paper prints its K_p in reverse order (64/48/32 for the
smallest to the largest K), which would leave no visual centre at K = 64 and contradicts its own table rows.
"strong-release" is "strong" with the 11/24 that the release notes give at 1/3 where the table captions give 1/4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import lcm

import torch
from torch import Tensor

_SHARES = (Fraction(1, 9), Fraction(2, 9), Fraction(1, 3))
_EIGHTH = Fraction(1, 8)


@dataclass(frozen=True)
class Schedule:
    """K_p / K at keep shares 1/9, 2/9 and 1/3, and k / K_p."""

    prompt_shares: tuple[Fraction, Fraction, Fraction]
    fold: Fraction


SCHEDULES = {
    "default": Schedule((Fraction(1, 2), Fraction(3, 8), Fraction(1, 3)), _EIGHTH),
    "strong": Schedule((Fraction(3, 8), Fraction(1, 4), Fraction(1, 4)), Fraction(3, 40)),
    "strong-release": Schedule((Fraction(3, 8), Fraction(1, 4), Fraction(11, 24)), Fraction(3, 40)),
    "weak": Schedule((Fraction(1, 2), Fraction(7, 16), Fraction(5, 12)), _EIGHTH),
}

ENDS = ("strong", "weak")  # of what lies between them, see ``between``


@dataclass(frozen=True)
class Budget:
    """Of N visual tokens keep K, K_p of them prompt centres found with a k-fold cover.

    ``at_most``: a radius decides how many, K is the most.
    """

    N: int
    K: int
    K_p: int
    k: int
    at_most: bool = False

    @property
    def identity(self) -> bool:
        """Nothing is dropped."""
        return self.K >= self.N and not (self.at_most and self.N)


def round_half_up(value: Fraction | float) -> int:
    """The nearest integer, halves upwards. A float is read as the decimal it prints as: 0.29 means 29/100."""
    return (_exact(value) + Fraction(1, 2)).__floor__()


def _exact(value: Fraction | float) -> Fraction:
    """The decimal that a float prints as; float() first, because numpy's floats print their type too."""
    return value if isinstance(value, Fraction) else Fraction(repr(float(value)))


def keep_count(N: int, K: int | float) -> int:
    """Tokens to keep of N: an integer as it is (at most N), a share in (0, 1) rounded half up, at least one."""
    check_keep(K)
    if isinstance(K, int):
        return min(K, N)
    return min(N, max(1, round_half_up(_exact(K) * N)))


def check_keep(K: int | float) -> None:
    """ValueError unless K is a positive integer or a share in (0, 1)."""
    if isinstance(K, bool) or not isinstance(K, (int, float)):
        raise ValueError(f"K={K!r}: give an integer number of tokens, or a share between 0 and 1")
    if isinstance(K, int) and K <= 0:
        raise ValueError(f"K={K}: keep at least one visual token; leave K unset to switch pruning off")
    if isinstance(K, float) and not 0 < K < 1:
        raise ValueError(f"K={K}: a float is a share and must lie between 0 and 1; give a token count as an integer")


def budget(
    N: int,
    K: int | float,
    *,
    K_p: int | None = None,
    k: int | None = None,
    Kp_ratio: float | None = None,
    k_ratio: float | None = None,
    schedule: str = "default",
) -> Budget:
    """The integers for N visual tokens.

    Args:
        K: tokens to keep, or a share in (0, 1).
        K_p, k: taken as they are when given.
        Kp_ratio, k_ratio: K_p / K and k / K_p, used where the integers are not given.
        schedule: one of ``SCHEDULES``, used for what neither gives.

    Raises:
        ValueError: K_p > K, K <= 0, k < 1, a ratio outside its range, or an unknown schedule.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule={schedule!r}: use one of {', '.join(SCHEDULES)}")
    check_keep(K)
    if isinstance(K, int) and K_p is not None and K_p > K:
        raise ValueError(f"K_p={K_p} with K={K}: prompt centres are part of the budget, choose 0 <= K_p <= K")
    for name, ratio in (("Kp_ratio", Kp_ratio), ("k_ratio", k_ratio)):
        if ratio is not None and not 0 <= ratio <= 1:
            raise ValueError(f"{name}={ratio}: give a number between 0 and 1")
    kept = keep_count(N, K)
    if K_p is None:
        share = _exact(Kp_ratio) if Kp_ratio is not None else prompt_share(N, kept, schedule)
        K_p = round_half_up(share * kept)
    if k is None:
        fold = _exact(k_ratio) if k_ratio is not None else SCHEDULES[schedule].fold
        k = max(1, round_half_up(fold * K_p))
    if K_p < 0 or k < 1:
        raise ValueError(f"K_p={K_p}, k={k}: choose K_p >= 0 and k >= 1")
    return Budget(N=N, K=kept, K_p=min(K_p, kept), k=k)


def between(N: int, K: int, weight: Tensor) -> tuple[Tensor, Tensor]:
    """K_p and k between the schedules "strong" (weight 0) and "weak" (weight 1), int64 (B,) on the weights' device.

    Shares are interpolated, then rounded half up as everywhere: a weight of 0 or 1 gives the schedule's own integers.

    Args:
        weight: (B,), in 0..1.
    """
    # There is no float64 on Apple's GPUs; elsewhere it keeps halves apart from what lies next to them.
    weight = weight.to(torch.float32 if weight.device.type == "mps" else torch.float64)
    shares = [float(K * prompt_share(N, K, name)) for name in ENDS]
    K_p = (_mixed(*shares, weight) + 0.5).floor()
    folds = [SCHEDULES[name].fold for name in ENDS]
    whole = lcm(*(fold.denominator for fold in folds))  # of integers, a half comes out as a half
    k = (K_p * _mixed(*(float(fold * whole) for fold in folds), weight) / whole + 0.5).floor()
    return K_p.to(torch.int64).clamp_max(K), k.to(torch.int64).clamp_min(1)


def _mixed(strong: float, weak: float, weight: Tensor) -> Tensor:
    """The line from ``strong`` to ``weak``, both ends exact."""
    return torch.where(weight < 0.5, strong + weight * (weak - strong), weak - (1 - weight) * (weak - strong))


def split(whole: Budget, lengths: Sequence[int], fixed_fold: bool = False) -> list[Budget]:
    """Budgets of a sample's pictures, whose K and K_p add up to the sample's: in proportion to their tokens.

    What is left over after rounding down goes to the largest remainders, ties to the first picture. A picture's k keeps
    k / K_p of the sample, or k itself where it is ``fixed_fold``.

    Args:
        whole: the sample's budget; lengths: visual tokens of each picture, adding up to ``whole.N``.
    """
    if sum(lengths) != whole.N:
        raise ValueError(f"pictures of {list(lengths)} tokens do not add up to N={whole.N}")
    keep = _proportional(whole.K, lengths)
    centres = _proportional(whole.K_p, keep)
    folds = [whole.k if fixed_fold or not p else _fold(whole, p) for p in centres]
    return [Budget(*numbers, whole.at_most) for numbers in zip(lengths, keep, centres, folds, strict=True)]


def _fold(whole: Budget, centres: int) -> int:
    return max(1, round_half_up(Fraction(whole.k * centres, whole.K_p)))


def _proportional(total: int, weights: Sequence[int]) -> list[int]:
    """Integers that add up to ``total``, at most the weights where these add up to more."""
    whole = sum(weights) or 1
    shares = [Fraction(total * weight, whole) for weight in weights]
    out = [share.__floor__() for share in shares]
    most = sorted(range(len(out)), key=lambda i: (out[i] - shares[i], i))
    for i in most[: total - sum(out)]:
        out[i] += 1
    return out


def prompt_share(N: int, K: int, schedule: str = "default") -> Fraction:
    """K_p / K for keeping K of N, interpolated between the printed shares and held beyond them."""
    shares = SCHEDULES[schedule].prompt_shares
    kept = Fraction(K, N) if N else _SHARES[-1]
    if kept <= _SHARES[0]:
        return shares[0]
    for low, high, at_low, at_high in zip(_SHARES, _SHARES[1:], shares, shares[1:], strict=False):
        if kept <= high:
            return at_low + (at_high - at_low) * (kept - low) / (high - low)
    return shares[-1]
