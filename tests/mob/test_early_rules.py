"""Rules before the decoder against slow versions (``early_rules_reference``)."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from early_rules_reference import slow_cdpruner, slow_mmtok, slow_scope, slow_visionzip
from mob import coverage
from mob.budget import Budget
from mob.methods import METHODS, Merged, SpanView, TowerView, create, needs_of
from mob.methods.pooling import windows
from reference import cosine

EARLY = ["cdpruner", "divprune", "mmtok", "pooling", "scope", "visionzip"]
rules = pytest.mark.parametrize("name", EARLY)
D, DV, DK = 12, 10, 5


def view_of(N=20, L=4, B=1, seed=0, newlines=(), cls=True, mask=None, grid=None, visual=None):
    """A made-up view: features, words, and a tower whose projector is not linear."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    visual = noise(B, N, D) if visual is None else visual
    placed = torch.ones(B, N, dtype=torch.bool)
    placed[:, list(newlines)] = False
    weight = noise(DV, D)
    scores, keys, hidden = noise(B, N).softmax(-1), noise(B, N, DK), noise(B, N, DV)
    for part in (scores, keys, hidden):
        part[~placed] = 0
    head = noise(B, DV) if cls else None
    tower = TowerView(scores, keys, hidden, placed, head, lambda rows: torch.tanh(rows @ weight) + rows.sum(-1, True))
    height, width = grid or (1, N)
    cells = [(0, 0, i // width, i % width) for i in range(height * width)]
    cells += [(0, 1, i, -1) for i in range(N - len(cells))]
    return SpanView(visual, noise(B, L, D), mask, "cosine", tower, [cells] * B)


def run(name, view, K, **options):
    N = view.visual.shape[1]
    chosen = create(name, options).select(view, Budget(N, K, 0, 1))
    for row in chosen.indices.tolist():
        assert len(row) == K and row == sorted(set(row)) and row[0] >= 0 and row[-1] < N
    if isinstance(chosen, Merged):
        assert chosen.features.shape == (len(view.visual), K, view.visual.shape[2])
        assert chosen.features.dtype == view.visual.dtype
    return chosen


def part_of(view, rows):
    tower = view.tower
    cls = None if tower.cls is None else tower.cls[rows]
    tower = TowerView(*(x[rows] for x in (tower.scores, tower.keys, tower.hidden, tower.placed)), cls, tower.project)
    mask = None if view.prompt_mask is None else view.prompt_mask[rows]
    return SpanView(view.visual[rows], view.prompt[rows], mask, view.metric, tower, [view.cells[r] for r in rows])


# ---------------------------------------------------------------------------------------------------------------
# By the book


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("options", [{}, {"negative": True}, {"theta": 0.5}, {"theta": 0.9}, {"theta": 0.999}], ids=str)
def test_cdpruner(seed, options):
    view = view_of(L=0 if seed == 5 else 4, seed=seed)
    for K in (1, 5, 11):
        expected = slow_cdpruner(view.visual[0].numpy(), view.prompt[0].numpy(), K, **options)
        assert run("cdpruner", view, K, **options).indices[0].tolist() == expected


def test_cdpruner_near_the_end_of_theta_keeps_the_most_relevant():
    """exp(theta / (2 (1 - theta))) is then beyond any float."""
    view = view_of()
    relevance = [sum(cosine(token, word) for word in view.prompt[0].numpy()) for token in view.visual[0].numpy()]
    best = sorted(range(20), key=lambda i: -relevance[i])[:7]
    assert run("cdpruner", view, 7, theta=1 - 1e-9).indices[0].tolist() == sorted(best)


def test_cdpruner_ranks_relevance_within_each_picture():
    """A picture that resembles its question far more than its neighbour's does changes nothing there."""
    for seed in range(6):
        view = view_of(B=2, seed=seed)
        near = view.visual.clone()
        near[1] += 20 * view.prompt[1].mean(0)
        view = replace(view, visual=near)
        both = run("cdpruner", view, 5).indices
        for row in (0, 1):
            assert both[row].tolist() == run("cdpruner", part_of(view, [row]), 5).indices[0].tolist()
            expected = slow_cdpruner(view.visual[row].numpy(), view.prompt[row].numpy(), 5)
            assert both[row].tolist() == expected


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("alpha", [0, 1.0, 2.5])
def test_scope(seed, alpha):
    view = view_of(seed=seed, newlines=(3, 9))
    for K in (1, 6, 14):
        assert run("scope", view, K, alpha=alpha).indices[0].tolist() == slow_scope(view, K, alpha)


@pytest.mark.parametrize("faint", [1e-4, 1e-6])
def test_scope_of_high_powers_of_little_attention(faint):
    view = view_of(newlines=(3, 9))
    view = replace(view, tower=replace(view.tower, scores=view.tower.scores * faint))
    for K in (1, 6, 14):
        assert run("scope", view, K, alpha=10).indices[0].tolist() == slow_scope(view, K, 10)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("options", [(0.02, 0.2, 0.5), (1.0, 1.0, 2.0), (0.1, 0.1, 0)], ids=str)
def test_mmtok(seed, options):
    view = view_of(seed=seed)
    named = dict(zip(("tau_text", "tau_visual", "alpha"), options, strict=True))
    for K in (1, 6, 14):
        expected = slow_mmtok(view.visual[0].numpy(), view.prompt[0].numpy(), K, *options)
        assert run("mmtok", view, K, **named).indices[0].tolist() == expected


def test_mmtok_without_a_prompt_covers_the_picture():
    view = view_of(L=0)
    expected = slow_mmtok(view.visual[0].numpy(), [], 6, 0.02, 0.2, 0.5)
    for alpha in (0.5, 0, 1e-60):
        assert run("mmtok", view, 6, alpha=alpha).indices[0].tolist() == expected


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("cls", [True, False])
@pytest.mark.parametrize("K, C", [(1, 0), (4, 1), (9, 3), (9, 8), (12, 0), (18, 3)])
def test_visionzip(seed, cls, K, C):
    view = view_of(seed=seed, newlines=(5, 19))
    chosen = run("visionzip", view, K, contextual=C, cls=cls)
    expected, dominant, _ = slow_visionzip(view, K, C, cls)
    assert chosen.indices[0].tolist() == sorted(expected)
    for place, feature in zip(chosen.indices[0].tolist(), chosen.features[0], strict=True):
        assert np.allclose(feature, expected[place], rtol=0, atol=1e-9)
        if place in dominant:
            assert torch.equal(feature, view.visual[0, place])


def test_visionzip_in_the_published_order():
    """CLS, dominant in raster order, contextual; laid into the places in this order."""
    view = view_of()
    raster = run("visionzip", view, 9, contextual=3)
    published = run("visionzip", view, 9, contextual=3, order="published")
    features, dominant, targets = slow_visionzip(view, 9, 3)
    (own,) = set(features) - {*dominant, *targets}
    assert torch.equal(raster.indices, published.indices)
    expected = np.stack([features[i] for i in (own, *sorted(dominant), *targets)])
    assert np.allclose(published.features[0], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("K, C", [(64, 10), (128, 20), (192, 30)])
def test_visionzip_shares_are_the_published_ones(K, C):
    assert create("visionzip").contextual_count(K) == C


def test_visionzip_without_cls_token():
    view = view_of(cls=False)
    expected, *_ = slow_visionzip(view, 9, 2, cls=False)
    assert run("visionzip", view, 9, contextual=2).indices[0].tolist() == sorted(expected)


def test_visionzip_and_pooling_keep_newlines_last():
    """More than there are patches: all patches as they are, and the first newlines."""
    view = view_of(N=20, newlines=(4, 9, 14, 19))
    chosen = run("visionzip", view, 18)
    assert set(range(20)) - set(chosen.indices[0].tolist()) == {14, 19}
    assert torch.equal(chosen.features[0], view.visual[0, chosen.indices[0]])
    view = view_of(N=20, grid=(4, 4))
    chosen = run("pooling", view, 18)
    assert chosen.indices[0].tolist() == list(range(18))
    assert torch.equal(chosen.features[0], view.visual[0, :18])


# ---------------------------------------------------------------------------------------------------------------
# Pooling


@pytest.mark.parametrize("side, K, cells", [(24, 64, (8, 8)), (24, 144, (12, 12)), (24, 128, (8, 16)), (6, 4, (2, 2))])
def test_pooling_is_adaptive_average_pooling(side, K, cells):
    view = view_of(N=side * side, grid=(side, side))
    chosen = run("pooling", view, K)
    picture = view.visual[0].T.view(1, D, side, side)
    assert (len({rows for rows, _ in windows(side, side, K)}), K // cells[0]) == cells
    expected = torch.nn.functional.adaptive_avg_pool2d(picture, cells).flatten(2)[0].T
    assert torch.allclose(chosen.features[0], expected, rtol=0, atol=1e-12)
    middles = [
        [math.floor(np.median(range(i * side // count, math.ceil((i + 1) * side / count))) + 0.5) for i in range(count)]
        for count in cells
    ]
    places = [row * side + column for row in middles[0] for column in middles[1]]
    assert chosen.indices[0].tolist() == places


@given(st.integers(1, 12), st.integers(1, 12), st.data())
@settings(max_examples=150, deadline=None)
def test_windows(height, width, data):
    """Any K: so many windows, no two with the same middle, that leave nothing out; none is empty."""
    K = data.draw(st.integers(1, height * width))
    found = windows(height, width, K)
    middles = {(sum(rows) // 2, sum(columns) // 2) for rows, columns in found}
    covered = {(i, j) for rows, columns in found for i in range(*rows) for j in range(*columns)}
    assert len(found) == len(middles) == K
    assert covered == {(i, j) for i in range(height) for j in range(width)}
    assert middles <= covered
    if height * width == K:
        assert all(rows[1] - rows[0] == columns[1] - columns[0] == 1 for rows, columns in found)


@given(st.integers(1, 6), st.integers(1, 6), st.data())
@settings(max_examples=40, deadline=None)
def test_pooled_values(height, width, data):
    K = data.draw(st.integers(1, height * width))
    view = view_of(N=height * width, grid=(height, width))
    expected = {}
    for rows, columns in windows(height, width, K):
        members = [i * width + j for i in range(*rows) for j in range(*columns)]
        expected[sum(rows) // 2 * width + sum(columns) // 2] = np.mean(view.visual[0].numpy()[members], axis=0)
    chosen = run("pooling", view, K)
    assert chosen.indices[0].tolist() == sorted(expected)
    assert np.allclose(chosen.features[0], [expected[i] for i in sorted(expected)], rtol=0, atol=1e-12)


def test_pooling_views_share_the_budget():
    """A whole view of 4 x 4, tiles of 4 x 8 with newlines: a third and two thirds."""
    cells = [(0, 0, i // 4, i % 4) for i in range(16)]
    for row in range(4):
        cells += [(0, 1, row, column) for column in range(8)] + [(0, 1, row, -1)]
    view = SpanView(torch.randn(1, len(cells), D), torch.zeros(1, 0, D), cells=[cells])
    kept = [cells[i] for i in run("pooling", view, 12).indices[0]]
    assert sum(cell[1] == 0 for cell in kept) == 4 and all(cell[3] >= 0 for cell in kept)


@pytest.mark.parametrize(
    "cells, message",
    [
        ([(0, 0, -1, -1)] * 6, "layout of this picture is not known"),
        ([(0, 0, 0, 0), (0, 0, 0, 1), (0, 0, 1, 0)], "name it before rules that drop some"),
    ],
)
def test_pooling_needs_whole_grids(cells, message):
    view = SpanView(torch.randn(1, len(cells), D), torch.zeros(1, 0, D), cells=[cells])
    with pytest.raises(ValueError, match=message):
        run("pooling", view, 2)


# ---------------------------------------------------------------------------------------------------------------
# All rules


@rules
@pytest.mark.parametrize("K", [1, 5, 19])
def test_a_batch_equals_its_samples(name, K):
    mask = torch.tensor([[True] * 4, [True, True, False, False], [True, False, False, False]])
    view = view_of(B=3, mask=mask, newlines=(7,), grid=(4, 5))
    together = run(name, view, K)
    for row in range(3):
        alone = part_of(view, [row])
        alone = SpanView(
            alone.visual, alone.prompt[:, : int(mask[row].sum())], None, "cosine", alone.tower, alone.cells
        )
        single = run(name, alone, K)
        assert torch.equal(together.indices[row], single.indices[0])
        if isinstance(single, Merged):
            assert torch.allclose(together.features[row], single.features[0], rtol=0, atol=1e-12)


@rules
def test_twice_is_the_same(name):
    view = view_of(N=30, B=2, grid=(5, 6))
    assert torch.equal(run(name, view, 11).indices, run(name, view, 11).indices)


@rules
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_tokens_that_are_all_alike(name, dtype):
    """K distinct tokens all the same; rules that only choose take the first ones."""
    view = view_of(N=16, grid=(4, 4), visual=torch.ones(1, 16, D, dtype=dtype))
    tower = TowerView(
        torch.full((1, 16), 1 / 16),
        torch.ones(1, 16, DK),
        torch.ones(1, 16, DV, dtype=dtype),
        view.tower.placed,
        torch.ones(1, DV, dtype=dtype),
        lambda rows: rows.sum(-1, keepdim=True).expand(*rows.shape[:-1], D),
    )
    view = SpanView(view.visual, torch.ones(1, 3, D, dtype=dtype), None, "cosine", tower, view.cells)
    for K in (1, 7, 15):
        chosen = run(name, view, K)
        if name in ("cdpruner", "scope", "mmtok", "divprune"):
            assert chosen.indices[0].tolist() == list(range(K))


def test_scope_takes_newlines_last():
    """Of equal tokens one, that of the highest score, covers all: then nothing gains, and places decide."""
    view = view_of(N=6, newlines=(0,), grid=None)
    tower = replace(view.tower, hidden=torch.ones_like(view.tower.hidden))
    view = replace(view, tower=tower)
    first = int(tower.scores[0].argmax())
    for K, kept in ((1, [first]), (3, sorted([first, 1, 2])), (5, [1, 2, 3, 4, 5]), (6, [0, 1, 2, 3, 4, 5])):
        assert run("scope", view, K).indices[0].tolist() == kept


def test_cdpruner_beyond_the_rank():
    """Three directions: after three tokens nothing has variance of its own, and the first ones in order follow."""
    visual = torch.eye(3, D, dtype=torch.float64)[torch.tensor([0, 0, 1, 1, 2, 2, 0, 1])][None]
    view = view_of(N=8, L=0, visual=visual)
    assert run("cdpruner", view, 3).indices[0].tolist() == [0, 2, 4]
    assert run("cdpruner", view, 5).indices[0].tolist() == [0, 1, 2, 3, 4]


def test_rows_that_are_unusable():
    """Zeros and NaN resemble nothing, and nothing fails."""
    visual = view_of().visual.clone()
    visual[0, 3] = 0
    visual[0, 4] = float("nan")
    for name in ("cdpruner", "mmtok"):
        run(name, view_of(visual=visual), 12)


@given(st.integers(1, 12), st.integers(1, 6), st.integers(1, 3), st.booleans(), st.integers(0, 2**31), st.data())
@settings(max_examples=80, deadline=None)
def test_coverage_both_ways(N, R, B, coarse, seed, data):
    """The way for CPUs and the way for accelerators, with many ties and with none."""
    generator = torch.Generator().manual_seed(seed)
    one, two = torch.rand(B, N, N, generator=generator), torch.rand(B, R, N, generator=generator)
    if coarse:
        one, two = (part.mul(3).round() / 3 for part in (one, two))
    blocks = [coverage.on_grid(one), coverage.on_grid(two)]
    weights = [torch.rand(B, N, generator=generator).mul(2).round().double(), torch.ones(B, N).double()]
    K = data.draw(st.integers(1, N))
    assert torch.equal(coverage._lazily(blocks, weights, K), coverage._at_once(blocks, weights, K))


@pytest.mark.parametrize(
    "name, options",
    [
        ("cdpruner", {"theta": 0.9999999}),
        ("scope", {"alpha": 10}),
        ("mmtok", {"alpha": 1e6}),
        ("mmtok", {"tau_text": 0.001}),
        ("mmtok", {"tau_text": 1000}),
        ("mmtok", {"tau_visual": 0.001}),
        ("mmtok", {"tau_visual": 1000}),
    ],
    ids=str,
)
def test_rules_still_choose_at_the_ends_of_their_options(name, options):
    """Where numbers run over, or all are alike, the first tokens are what is left to take."""
    for K in (3, 7):
        assert run(name, view_of(N=40, seed=1), K, **options).indices[0].tolist() != list(range(K))


def test_contextual_tokens_must_leave_a_dominant_one():
    with pytest.raises(ValueError, match="leave at least one dominant token"):
        run("visionzip", view_of(), 4, contextual=4)


@rules
def test_what_rules_say_of_themselves(name):
    rule = METHODS[name]
    assert rule.early and rule.paper and set(needs_of(rule)) <= {"tower", "cells"}
    assert rule.objective in ("alignment", "preservation", "both")
