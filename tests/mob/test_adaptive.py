"""Budgets that follow each picture: K_p and k from eta, and a radius that ends the selection."""

from __future__ import annotations

import contextlib
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptive_reference import prefix
from mob import farthest
from mob.budget import between, budget, prompt_share
from mob.coupling import radii, weak_weight
from mob.covering import Ragged, Selection, cosines, prompt_centers, select, unit_rows
from mob.farthest import NEVER, demanded_rows, gram_rows, in_blocks, loop
from mob.methods import create
from mob.methods.base import SpanView

quick = settings(max_examples=40, deadline=None, derandomize=True)


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------------------- K_p and k


@quick
@given(st.integers(1, 3000), st.integers(1, 3000), st.sampled_from([0.0, 1.0]))
def test_the_ends_are_the_papers_schedules(N, K, weight):
    K = min(K, N)
    whole = budget(N, K, schedule="weak" if weight else "strong")
    K_p, k = between(N, K, torch.tensor([weight], dtype=torch.float64))
    assert (int(K_p), int(k)) == (whole.K_p, whole.k)


@quick
@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(0, 64))
def test_between_the_ends_shares_are_interpolated_and_rounded_half_up(N, K, step):
    """Against exact fractions; weights of 1/64 are exact in floats too."""
    K, w = min(K, N), Fraction(step, 64)
    strong, weak = prompt_share(N, K, "strong"), prompt_share(N, K, "weak")
    share = K * (strong + w * (weak - strong))
    if abs(share % 1 - Fraction(1, 2)) < Fraction(1, 10**9) and share % 1 != Fraction(1, 2):
        return
    K_p = math.floor(share + Fraction(1, 2))
    k = max(1, math.floor(K_p * (Fraction(3, 40) + w * Fraction(2, 40)) + Fraction(1, 2)))
    got = between(N, K, torch.tensor([step / 64], dtype=torch.float64))
    half = share % 1 == Fraction(
        1, 2
    )  # a share such as 1/3 times the weight is not exact: the half may fall either way
    assert int(got[0]) in ({K_p - 1, K_p} if half and 0 < step < 64 else {K_p})
    if int(got[0]) == K_p:
        assert int(got[1]) == k


@quick
@given(st.integers(1, 700), st.integers(1, 700), st.floats(0, 1), st.floats(0, 1))
def test_more_weight_never_means_fewer_prompt_centres(N, K, a, b):
    K = min(K, N)
    K_p, k = between(N, K, torch.tensor(sorted([a, b]), dtype=torch.float64))
    assert K_p[0] <= K_p[1] <= budget(N, K, schedule="weak").K_p <= K and 1 <= k[0] <= k[1]


def test_the_weight_is_logistic_in_eta():
    eta = torch.tensor([0.0, 1.2, 1.25, 1.3, 2.0, float("nan")])
    weight = weak_weight(eta, 1.25, 0.05).tolist()
    expected = [1 / (1 + math.exp(-(e - 1.25) / 0.05)) for e in (0, 1.2, 1.25, 1.3, 2)]
    assert weight[:5] == pytest.approx(expected, abs=1e-6) and weight[5] == 0
    assert weak_weight(eta, 1.25, 0.0).tolist() == [0, 0, 0, 1, 1, 0]  # tau itself is strong


@quick
@given(st.integers(0, 10**6))
def test_numbers_for_each_sample_equal_one_call_for_each(seed):
    generator = torch.Generator().manual_seed(seed)
    visual, text = rows(5, 18, 8, seed=seed), rows(5, 4, 8, seed=seed + 1)
    mask = torch.arange(4) < torch.randint(0, 5, (5, 1), generator=generator)
    K_p, k = torch.randint(0, 9, (5,), generator=generator), torch.randint(1, 6, (5,), generator=generator)
    for epsilon in (None, 1.1):
        got = select(visual, text, 8, K_p, k, prompt_mask=mask, epsilon=epsilon)
        bounded = select(visual, text, 8, K_p, k, prompt_mask=mask, epsilon=epsilon, at_most=int(K_p.max()))
        for row in range(5):
            alone = select(
                visual[row], text[row], 8, int(K_p[row]), int(k[row]), prompt_mask=mask[row], epsilon=epsilon
            )
            one = select(visual[row], text[row], 8, K_p[row], k[row], prompt_mask=mask[row], epsilon=epsilon)
            for a, b, c, d in zip(got, alone, bounded, one, strict=True):
                assert torch.equal(a[row], b) and torch.equal(c[row], b) and torch.equal(d, b)


def test_numbers_outside_are_cut_off_and_wrong_tensors_are_errors():
    visual, text = rows(2, 9, 4), rows(2, 3, 4, seed=1)
    wide = select(visual, text, 5, torch.tensor([99, -3]), torch.tensor([0, 99]))
    assert torch.equal(wide.indices[0], select(visual[0], text[0], 5, 5, 1).indices)
    assert torch.equal(wide.indices[1], select(visual[1], text[1], 5, 0, 9).indices)
    for wrong in (torch.tensor([1.0, 2.0]), torch.tensor([1, 2, 3])):
        with pytest.raises(ValueError, match="give one integer for each sample"):
            select(visual, text, 5, wrong, 2)


def test_adaptive_numbers_never_wait_for_the_device(monkeypatch):
    """Tensors on "meta" have no values: whatever reads one on the host raises."""
    monkeypatch.setattr(torch, "autocast", lambda *a, **k: contextlib.nullcontext())  # meta has no autocast
    view = SpanView(torch.empty(3, 50, 8, device="meta"), torch.empty(3, 4, 8, device="meta"))
    for epsilon in (None, 1.0):
        got = create("mob", {"regime": "auto", "tau": 1.2, "epsilon": epsilon}).select(view, budget(50, 20))
        assert got.indices.shape == (3, 20) and got.asked["K_p"].shape == (3,)


def test_prompt_centres_of_unlike_numbers():
    units, text = unit_rows(rows(3, 12, 6)), unit_rows(rows(3, 4, 6, seed=1))
    counts = torch.tensor([0, 3, 7])
    found = prompt_centers(units, text, counts, torch.tensor([1, 2, 9]), None, None)
    assert found.sum(1).tolist() == [0, 3, 7]


# --------------------------------------------------------------------------------------------------------- epsilon


def listed(selection):
    """(indices, prompt centres) of one sample, those that are kept."""
    real = selection.real.tolist()
    return tuple([v for v, r in zip(part.tolist(), real, strict=True) if r] for part in selection[:2])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.4, 0.7, 0.9, 1.0, 1.1, 1.2, 1.3, 1.41, 2.0]))
def test_epsilon_keeps_the_shortest_prefix_that_covers(seed, epsilon):
    generator = torch.Generator().manual_seed(seed)

    def pick(low, high):
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    N, L, d, K = pick(1, 24), pick(0, 4), pick(2, 8), pick(1, 26)
    K_p, k = pick(0, K), pick(1, 4)
    visual, text = rows(N, d, seed=seed), rows(L, d, seed=seed + 1)
    if seed % 3 == 0:
        visual = visual[torch.randint(0, N // 2 + 1, (N,), generator=generator)]
    got = select(visual, text, K, K_p, k, epsilon=epsilon)
    assert isinstance(got, Ragged) and got.indices.shape == (min(K, N),)
    assert listed(got) == tuple(prefix(visual.double().numpy(), text.double().numpy(), K, K_p, k, epsilon))
    assert len(set(got.indices.tolist())) == min(K, N)
    real = got.real.tolist()
    assert real[0] and real == sorted(real, reverse=True)


def test_a_smaller_radius_never_keeps_fewer():
    visual, text = rows(60, 6), rows(3, 6, seed=1)
    counts = [int(select(visual, text, 40, 4, 2, epsilon=e).real.sum()) for e in np.linspace(0, 2, 21)]
    assert counts == sorted(counts, reverse=True) and counts[0] == 40 and counts[-1] == 4


def test_a_batch_stops_where_its_samples_stop():
    visual = torch.cat([rows(2, 40, 6), 0.2 * rows(2, 40, 6, seed=5) + rows(1, 1, 6, seed=6)])
    text, mask = rows(4, 3, 6, seed=1), torch.arange(3) < torch.tensor([[3], [0], [2], [1]])
    seen = torch.arange(40) < torch.tensor([[40], [33], [40], [25]])
    got = select(visual, text, 24, 5, 2, epsilon=0.9, visual_mask=seen, prompt_mask=mask)
    counts = got.real.sum(1).tolist()
    assert len(set(counts)) > 2
    for row in range(4):
        alone = select(visual[row][seen[row]], text[row][mask[row]], 24, 5, 2, epsilon=0.9)
        assert listed(Ragged(*(part[row] for part in got))) == listed(alone)


def test_exactly_at_the_radius_is_covered():
    """cos = 1/2, on the grid exactly: a token at distance 1 of another."""
    units = torch.tensor([[[1.0, 0.0], [0.5, 0.75**0.5]]])
    taken = torch.tensor([[True, False]])
    distance = (1 - cosines(units, units[:, :1])[..., 0]).masked_fill(taken, NEVER)
    assert distance[0, 1] == 0.5
    for stop, kept in ((0.5, 1), (0.4999, 2)):
        found = [loop(taken, distance, 2, 1, make(units), stop) for make in (gram_rows, demanded_rows)]
        assert [int(one.sum()) for one in (*found, in_blocks(units, taken, distance, 2, stop))] == [kept] * 3


@pytest.mark.parametrize("stop", [0.05, 0.3, 0.6, 1.9])
def test_all_ways_stop_alike(stop):
    units = unit_rows(rows(3, 80, 12))
    taken = torch.zeros(3, 80, dtype=torch.bool).index_fill(1, torch.tensor([3]), True)
    distance = (1 - cosines(units, units[:, 3:4])[..., 0]).masked_fill(taken, NEVER)
    ways = [loop(taken, distance, 50, 49, make(units), stop) for make in (gram_rows, demanded_rows)]
    ways.append(in_blocks(units, taken, distance, 50, stop))
    assert torch.equal(ways[0], ways[1]) and torch.equal(ways[0], ways[2])


@pytest.mark.parametrize("gram", [True, False])
def test_accelerators_stop_alike_and_leave_the_kernel_alone(gram, monkeypatch):
    units = unit_rows(rows(3, 80, 12))
    taken = torch.zeros(3, 80, dtype=torch.bool).index_fill(1, torch.tensor([3]), True)
    distance = (1 - cosines(units, units[:, 3:4])[..., 0]).masked_fill(taken, NEVER)
    monkeypatch.setattr(farthest, "makes_gram", lambda *sizes: gram)
    monkeypatch.setattr(farthest, "triton_kernel", lambda units: pytest.fail("the kernel knows no radius"))
    got = farthest.on_accelerator(units, taken, distance, 50, 49, 0.5)
    assert torch.equal(got, loop(taken, distance, 50, 49, gram_rows(units), 0.5)) and int(got.sum(1).min()) < 50


def test_without_epsilon_nothing_is_ragged():
    assert type(select(rows(9, 4), rows(2, 4), 4, 2, 1)) is Selection
    with pytest.raises(ValueError, match="between 0 and 2"):
        select(rows(9, 4), rows(2, 4), 4, 2, 1, epsilon=2.5)


def test_radii_leave_out_what_is_not_kept():
    visual, text = rows(1, 30, 6), rows(1, 3, 6, seed=1)
    ragged = select(visual, text, 20, 4, 2, epsilon=1.0)
    count = int(ragged.real.sum())
    assert count < 20
    short = radii(visual, text, None, ragged.indices[:, :count], ragged.prompt_center[:, :count])
    assert all(torch.equal(a, b) for a, b in zip(radii(visual, text, None, *ragged), short, strict=True))
