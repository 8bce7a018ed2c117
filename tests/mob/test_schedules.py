"""Schedules of rules with several stages, against numbers worked out by hand and printed in the papers."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig

import rules_reference as slow
from mob.budget import Budget
from mob.cost import cost, keep_for_mean, mean_tokens
from mob.methods import METHODS, create
from mob.methods.base import Depth, SpanView
from mob.methods.sparsevlm import PUBLISHED, PUBLISHED_PLUS, density_peaks, merged, shares, spared, with_merged
from mob.stages import schedule

WHOLE = Depth(32)
LLAMA_7B = LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32)
LATE = ["fastv", "dart", "sparsevlm", "sparsevlm2", "pyramiddrop", "mob"]


def plan(method, K, N=576, depth=WHOLE, **options):
    return schedule(create(method, options), N, K, depth)


def test_published_pyramid():
    assert plan("pyramiddrop", 72) == [(8, 288), (16, 144), (24, 72)]
    assert mean_tokens(576, plan("pyramiddrop", 72), 32) == 270
    assert mean_tokens(576, plan("pyramiddrop", 9), 32) == 191.25 and keep_for_mean("pyramiddrop", 576, 192, 32) == 9
    assert plan("pyramiddrop", 12, N=96) == [(8, 48), (16, 24), (24, 12)]


@pytest.mark.parametrize(
    "rule, lists, options",
    [("sparsevlm", PUBLISHED, {"recycle": False}), ("sparsevlm2", PUBLISHED_PLUS, {})],
)
def test_published_lists_of_sparsevlm(rule, lists, options):
    for counts in lists.values():
        assert plan(rule, counts[-1], **options) == list(zip((3, 7, 16), counts, strict=True))


def test_between_the_published_lists_lie_straight_lines():
    """Half way from (66, 34, 20) to (246, 54, 28), a quarter of it, below the first list, and above the last."""
    assert plan("sparsevlm2", 24) == [(3, 156), (7, 44), (16, 24)]
    assert plan("sparsevlm2", 22) == [(3, 111), (7, 39), (16, 22)]
    assert plan("sparsevlm2", 10) == [(3, 33), (7, 17), (16, 10)]
    assert plan("sparsevlm2", 347) == [(3, 438), (7, 388), (16, 347)]


def test_sparsevlm_plus_listens_to_14_heads_of_32():
    """Fourteen heads give most to the picture, and see tokens 0 to 4; the next ones see nothing but 10 to 14."""
    heads = torch.ones(1, 32, 20)
    heads[:, :14, :5] += 0.2
    heads[:, 14:] = 0
    heads[:, 14:, 10:15] = 4.0
    probe = SimpleNamespace(
        attention=lambda weights, unbiased: heads,
        embeddings=lambda: (torch.ones(1, 20, 3), torch.ones(1, 20, dtype=torch.bool), torch.ones(1, 2, 3)),
    )
    view = SpanView(torch.ones(1, 20, 3), torch.ones(1, 2, 3), probe=probe)
    chosen = create("sparsevlm2").select(view, Budget(20, 5, 0, 1))
    assert chosen.indices.tolist() == [[0, 1, 2, 3, 4]]


def test_merged_tokens_are_counted():
    """True means over 32 layers with what is recycled: 206, 145, 114 and 82."""
    expected = {192: (113, 206), 128: (39, 145), 96: (27, 114), 64: (18, 82)}
    for nominal, (K, mean) in expected.items():
        counts = with_merged(PUBLISHED[nominal])
        assert counts[-1] == K and plan("sparsevlm", K) == list(zip((3, 7, 16), counts, strict=True))
        assert int(mean_tokens(576, plan("sparsevlm", K), 32)) == mean
        before = 576
        for own, count in zip(PUBLISHED[nominal], counts, strict=True):
            assert shares(before, count) == (own, count - own)
            before = count


@given(st.integers(2, 3000), st.data())
def test_shares_add_up(N, data):
    K = data.draw(st.integers(1, N - 1))
    own, clusters = shares(N, K)
    assert own + clusters == K and own >= 0 and 1 <= clusters <= spared(N - own) <= N - own
    if own:
        assert clusters == merged(N - own)
    assert (spared(N), merged(N)) == slow.merged_count(N)


@pytest.mark.parametrize("method", LATE)
@given(N=st.integers(2, 3000), layers=st.integers(5, 64), first=st.integers(1, 3), data=st.data())
def test_every_schedule_ends_with_K_and_never_grows(method, N, layers, first, data):
    K = data.draw(st.integers(1, N - 1))
    stages = plan(method, K, N, Depth(layers, first))
    at, left = zip(*stages, strict=True)
    assert left[-1] == K and all(K <= count <= N for count in left) and list(left) == sorted(left, reverse=True)
    assert list(at) == sorted(set(at)) and first <= at[0] and at[-1] < layers
    assert K <= mean_tokens(N, stages, layers) <= N


def test_layers_move_with_the_depth():
    assert [layer for layer, _ in plan("sparsevlm", 9, depth=Depth(28))] == [3, 6, 14]
    assert [layer for layer, _ in plan("pyramiddrop", 9, depth=Depth(24))] == [6, 12, 18]
    assert [layer for layer, _ in plan("sparsevlm", 9, depth=Depth(5))] == [1, 2, 3]
    assert [layer for layer, _ in plan("sparsevlm", 9, depth=Depth(36, 3))] == [3, 8, 18]
    # Too shallow: the first stages fall away.
    assert plan("pyramiddrop", 72, depth=Depth(5, 3)) == [(3, 144), (4, 72)]
    assert plan("sparsevlm2", 118, depth=Depth(2)) == [(1, 118)]


def test_dart_counts():
    assert [plan("dart", K, published=True)[0][1] for K in (64, 128, 192)] == [68, 132, 196]
    assert plan("dart", 64) == [(2, 64)] == plan("fastv", 64)
    assert plan("dart", 575, published=True) == [(2, 572)] and plan("dart", 14, N=15, published=True) == [(2, 12)]


@pytest.mark.parametrize("method", LATE)
def test_the_K_of_a_mean(method):
    """No other K comes nearer from below."""
    mean = 192
    K = keep_for_mean(method, 576, mean, 32)
    means = [mean_tokens(576, plan(method, one), 32) for one in (K, K + 1)]
    assert means[0] <= mean < means[1]
    expected = {"fastv": 166, "mob": 166, "dart": 166}  # (32 * 192 - 2 * 576) / 30 = 166.4
    assert expected.get(method, K) == K


def test_the_K_of_a_mean_of_rules_before_the_decoder():
    assert keep_for_mean("divprune", 576, 64.5, 32) == 64


def test_a_mean_out_of_reach():
    with pytest.raises(ValueError, match="cannot come down to 128 tokens a layer, at K=1 it has 16"):
        keep_for_mean("pyramiddrop", 576, 128, 32)
    assert keep_for_mean("pyramiddrop", 576, 128, 32, options={"layers": [4, 8, 16]}) > 1


def test_costs_of_several_stages():
    stages = plan("pyramiddrop", 72)
    whole = cost(LLAMA_7B, 576, stages=stages, text=40)
    assert whole.mean_tokens == 270
    parts = [cost(LLAMA_7B, n, n, text=40).macs / 4 for n in (576, 288, 144, 72)]
    assert whole.macs == pytest.approx(sum(parts))
    assert cost(LLAMA_7B, 576, stages=[(2, 64)], text=40) == cost(LLAMA_7B, 576, 64, text=40)
    for wrong in ({"K": 64, "stages": stages}, {}, {"stages": [(8, 64), (2, 32)]}, {"stages": [(2, 600)]}):
        with pytest.raises(ValueError):
            cost(LLAMA_7B, 576, **wrong)


@given(st.integers(0, 10**6), st.integers(2, 24), st.data())
def test_density_peaks(seed, m, data):
    """Against loops; equal rows among them, so that ties count."""
    clusters = data.draw(st.integers(1, m))
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(2, m, 3, generator=generator, dtype=torch.float64)
    rows = rows[:, torch.randint(0, m, (m,), generator=generator)]
    got = density_peaks(rows, clusters)
    for row, places in zip(rows, got.tolist(), strict=True):
        expected = slow.density_peaks(row.numpy(), clusters)
        assert {c: [i for i, at in enumerate(places) if at == c] for c in sorted(set(places))} == expected
        assert len(expected) == clusters


def test_every_late_rule_is_here():
    late = {name for name, cls in METHODS.items() if not getattr(cls, "early", False)}
    assert late - {"given", "prompt", "random", "visual"} == set(LATE)
