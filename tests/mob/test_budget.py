"""Budgets are the integers that the paper prints, and one rounding rule holds everywhere."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mob.budget import SCHEDULES, Budget, budget, keep_count, prompt_share, round_half_up, split

# (K_p, k) at K = 64, 128, 192 of 576; k is 3 K_p / 40 or K_p / 8, halves up.
PRINTED = {
    "default": [(32, 4), (48, 6), (64, 8)],
    "strong": [(24, 2), (32, 2), (48, 4)],
    "strong-release": [(24, 2), (32, 2), (88, 7)],
    "weak": [(32, 4), (56, 7), (80, 10)],
}


def test_every_schedule_is_checked():
    assert set(PRINTED) == set(SCHEDULES)


@pytest.mark.parametrize("schedule", PRINTED)
def test_printed_budgets(schedule):
    got = [budget(576, K, schedule=schedule) for K in (64, 128, 192)]
    assert [(b.K_p, b.k) for b in got] == PRINTED[schedule]
    assert [(b.N, b.K) for b in got] == [(576, 64), (576, 128), (576, 192)]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_shares_depend_on_the_reduction_rate_alone(schedule):
    """LLaVA-Next keeps 320 of 2880, the same ninth as 64 of 576."""
    assert prompt_share(2880, 320, schedule) == prompt_share(576, 64, schedule)
    assert budget(2880, 320, schedule=schedule).K_p == 5 * budget(576, 64, schedule=schedule).K_p


@pytest.mark.parametrize(
    "N, K, expected",
    [
        (100, 0.29, 29),  # 0.29 * 100 is 28.999999999999996
        (1000, 1 - 0.9, 100),  # 99.99999999999998
        (1000, 0.1, 100),
        (25, 0.1, 3),  # halves go up
        (35, 0.1, 4),  # round() would give 4 here, but 2 above
        (3, 0.01, 1),  # at least one
        (10, 0.99, 10),
        (1, 0.5, 1),
        (576, 64, 64),
        (576, 577, 576),
        (0, 64, 0),
    ],
)
def test_tokens_to_keep(N, K, expected):
    assert keep_count(N, K) == expected


@pytest.mark.parametrize(
    "value, expected", [(0.5, 1), (1.5, 2), (2.5, 3), (2.4999, 2), (0.0, 0), (7.0, 7), (Fraction(5, 2), 3), (1e-7, 0)]
)
def test_halves_go_up(value, expected):
    assert round_half_up(value) == expected


def test_ratios_and_integers_replace_the_schedule():
    assert budget(576, 64, Kp_ratio=0.375, k_ratio=0.075) == Budget(576, 64, 24, 2)
    assert budget(576, 192, Kp_ratio=11 / 24, k_ratio=3 / 40) == Budget(576, 192, 88, 7)
    assert budget(576, 64, K_p=5, k=3) == Budget(576, 64, 5, 3)
    assert budget(576, 64, K_p=0) == Budget(576, 64, 0, 1)
    assert budget(576, 100, Kp_ratio=0.29) == Budget(576, 100, 29, 4)


def test_a_fixed_K_p_is_cut_to_a_small_share():
    """A share of few tokens may come out below K_p; that is no mistake of the caller."""
    assert budget(10, 0.25, K_p=32, k=4) == Budget(10, 3, 3, 4)


@pytest.mark.parametrize("K, identity", [(575, False), (576, True), (1000, True)])
def test_identity(K, identity):
    assert budget(576, K).identity is identity


def test_shares_from_numpy():
    """A float64 is a float, but prints differently."""
    assert budget(576, np.float64(0.25), Kp_ratio=np.float64(0.5)) == budget(576, 0.25, Kp_ratio=0.5)


quick = settings(max_examples=200, deadline=None, derandomize=True)
schedules = st.sampled_from(list(SCHEDULES))


@quick
@given(st.integers(1, 4000), st.integers(1, 4000), schedules)
def test_budgets_always_make_sense(N, K, schedule):
    got = budget(N, K, schedule=schedule)
    assert min(N, K) == got.K and 0 <= got.K_p <= got.K and got.k >= 1


@quick
@given(st.integers(9, 4000), st.integers(1, 4000), st.integers(1, 4000), schedules)
def test_interpolation_is_monotone_and_stays_between_its_ends(N, first, second, schedule):
    """More tokens never mean fewer prompt centres."""
    low, high = sorted((first, second))
    assume(high <= N)
    ends = SCHEDULES[schedule].prompt_shares
    assert min(ends) <= prompt_share(N, low, schedule) <= max(ends)
    assert budget(N, low, schedule=schedule).K_p <= budget(N, high, schedule=schedule).K_p


def test_interpolation_is_linear_and_holds_the_ends():
    assert prompt_share(900, 150) == Fraction(7, 16)  # 1/6 lies midway between 1/9 and 2/9
    assert prompt_share(900, 1) == Fraction(1, 2)
    assert prompt_share(900, 900) == Fraction(1, 3)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"K": 0}, "keep at least one"),
        ({"K": -1}, "keep at least one"),
        ({"K": 0.0}, "share"),
        ({"K": 1.0}, "integer"),
        ({"K": 64.0}, "integer"),
        ({"K": float("nan")}, "between 0 and 1"),
        ({"K": True}, "integer number of tokens"),
        ({"K": "64"}, "integer number of tokens"),
        ({"K": None}, "integer number of tokens"),
        ({"K": 64, "K_p": 65}, "K_p=65 with K=64"),
        ({"K": 64, "K_p": -1}, "K_p >= 0"),
        ({"K": 64, "k": 0}, "k >= 1"),
        ({"K": 64, "Kp_ratio": -0.5}, "Kp_ratio|K_p"),
        ({"K": 64, "Kp_ratio": 1.5}, "Kp_ratio"),
        ({"K": 64, "schedule": "middling"}, "default, strong, strong-release, weak"),
    ],
)
def test_errors_say_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        budget(576, **arguments)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=6), st.data())
def test_split_adds_up_and_stays_within(lengths, data):
    N = sum(lengths)
    K = data.draw(st.integers(1, N))
    whole = budget(N, K, K_p=data.draw(st.integers(0, K)), k=data.draw(st.integers(1, 9)))
    parts = split(whole, lengths)
    assert [part.N for part in parts] == lengths
    assert sum(part.K for part in parts) == K and sum(part.K_p for part in parts) == whole.K_p
    for part in parts:
        assert 0 <= part.K_p <= part.K <= part.N and part.k >= 1
        assert abs(part.K - K * part.N / N) < 1
    assert [part.k for part in split(whole, lengths, fixed_fold=True)] == [whole.k] * len(lengths)


def test_split_by_hand():
    whole = budget(100, 10, K_p=4, k=4)
    assert split(whole, [50, 50]) == [Budget(50, 5, 2, 2)] * 2
    assert split(whole, [96, 3, 1]) == [Budget(96, 10, 4, 4), Budget(3, 0, 0, 4), Budget(1, 0, 0, 4)]
    assert split(whole, [25, 25, 25, 25]) == [Budget(25, 3, 1, 1)] * 2 + [Budget(25, 2, 1, 1)] * 2
    with pytest.raises(ValueError, match="do not add up to N=100"):
        split(whole, [50, 40])
