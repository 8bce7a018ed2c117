"""Algorithm 1 keeps what a brute-force version keeps, whatever the dtype, batch layout or quality of the rows."""

from __future__ import annotations

import contextlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from mob.covering import cosines, select, unit_rows, visual_centers

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def by_the_book(visual, prompt, K, K_p, k):
    return reference.select(visual.double().numpy(), prompt.double().numpy(), K, K_p, k)


def agrees(visual, prompt, K, K_p, k):
    got = select(visual, prompt, K, K_p, k)
    return (got.indices.tolist(), got.prompt_center.tolist()) == by_the_book(visual, prompt, K, K_p, k)


def draw(seed, largest=40):
    """Random rows and budgets; every third draw repeats visual rows, every fifth asks for a row that is there."""
    generator = torch.Generator().manual_seed(seed)

    def pick(low, high):
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    N, L, d = pick(1, largest), pick(0, 8), pick(2, 48)
    visual, prompt = torch.randn(N, d, generator=generator), torch.randn(L, d, generator=generator)
    if seed % 3 == 0:
        visual = visual[torch.randint(0, N // 2 + 1, (N,), generator=generator)]
    if L and seed % 5 == 0:
        prompt[0] = visual[-1]
    K = pick(1, N + 2)
    dtype = DTYPES[seed % len(DTYPES)]
    return visual.to(dtype), prompt.to(dtype), K, pick(0, K), pick(1, 6)


def test_a_thousand_draws_equal_the_reference():
    wrong = [seed for seed in range(1000) if not agrees(*draw(seed, largest=40 if seed % 4 == 0 else 12))]
    assert not wrong


seeds = st.integers(2000, 10**6)
quick = settings(max_examples=40, deadline=None, derandomize=True)


@quick
@given(seeds)
def test_keeps_exactly_K_distinct_ascending_tokens(seed):
    visual, prompt, K, K_p, k = draw(seed)
    indices, centre = select(visual, prompt, K, K_p, k)
    K = min(K, len(visual))
    assert indices.shape == centre.shape == (K,)
    assert indices.dtype == torch.int64 and centre.dtype == torch.bool
    assert (indices.diff() > 0).all() and indices.min() >= 0 and indices.max() < len(visual)
    assert centre.sum() <= K_p


@quick
@given(seeds)
def test_order_of_the_prompt_does_not_matter(seed):
    visual, prompt, *budget = draw(seed)
    turned = prompt[torch.randperm(len(prompt), generator=torch.Generator().manual_seed(seed))]
    assert torch.equal(select(visual, prompt, *budget).indices, select(visual, turned, *budget).indices)


@quick
@given(seeds)
def test_order_of_distinct_visual_tokens_does_not_matter(seed):
    generator = torch.Generator().manual_seed(seed)
    visual, prompt = torch.randn(20, 16, generator=generator), torch.randn(4, 16, generator=generator)
    order = torch.randperm(20, generator=generator)
    moved = order[select(visual[order], prompt, 8, 4, 2).indices].sort().values
    assert torch.equal(moved, select(visual, prompt, 8, 4, 2).indices)


@quick
@given(seeds)
def test_length_of_the_rows_does_not_matter(seed):
    """Powers of two, so that the scaled rows are exact; each row has its own."""
    visual, prompt, *budget = draw(seed)
    generator = torch.Generator().manual_seed(seed)
    scaled = [
        rows.float() * 2.0 ** torch.randint(-20, 21, (len(rows), 1), generator=generator) for rows in (visual, prompt)
    ]
    assert torch.equal(select(*scaled, *budget).indices, select(visual, prompt, *budget).indices)


@quick
@given(seeds)
def test_a_padded_batch_equals_its_samples(seed):
    """Samples of unlike sizes, padded with rows that would win every comparison if the masks were ignored."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [(12, 3), (7, 5), (9, 0), (20, 1)]
    samples = [(torch.randn(n, 8, generator=generator), torch.randn(m, 8, generator=generator)) for n, m in sizes]
    visual, prompt = torch.full((4, 20, 8), -100.0), torch.full((4, 5, 8), 100.0)
    visual_mask, prompt_mask = torch.zeros(4, 20, dtype=torch.bool), torch.zeros(4, 5, dtype=torch.bool)
    for row, (v, p) in enumerate(samples):
        at, to = 20 - len(v), 5 - len(p)  # on the left; indices then count the padding too
        visual[row, at:], prompt[row, to:] = v, p
        visual_mask[row, at:], prompt_mask[row, to:] = True, True
    got = select(visual, prompt, 6, 3, 2, visual_mask=visual_mask, prompt_mask=prompt_mask)
    for row, (v, p) in enumerate(samples):
        alone = select(v, p, 6, 3, 2)
        assert torch.equal(got.indices[row] - (20 - len(v)), alone.indices)
        assert torch.equal(got.prompt_center[row], alone.prompt_center)


def test_masks_of_a_single_sample():
    visual, prompt, *_ = draw(7)
    visual, prompt = visual.float(), prompt.float()
    junk = torch.ones(2, visual.shape[1])
    real = [torch.tensor([True] * len(rows) + [False] * 2) for rows in (visual, prompt)]
    padded = select(
        torch.cat([visual, junk]), torch.cat([prompt, junk]), 3, 2, 1, visual_mask=real[0], prompt_mask=real[1]
    )
    assert torch.equal(padded.indices, select(visual, prompt, 3, 2, 1).indices)


@pytest.mark.parametrize("fixed", [0, 2])
def test_radius_is_within_twice_the_optimum(fixed):
    """The bound of farthest-point sampling, also where prompt centres are given. The slack is the comparison grid."""
    for seed in range(15):
        generator = torch.Generator().manual_seed(seed)
        visual, prompt = torch.randn(10, 3, generator=generator), torch.randn(2, 3, generator=generator)
        indices, centre = select(visual, prompt, 4, fixed, 1)
        given_centres = indices[centre].tolist()
        points = visual.double().numpy()
        best = reference.best_radius(points, given_centres, 4 - len(given_centres))
        assert reference.radius(points, indices.tolist()) <= 2 * best + 2e-3


def test_equal_tokens_are_taken_in_order_and_only_once():
    assert select(torch.ones(9, 4), torch.ones(2, 4), 5, 2, 3).indices.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("bad", [0.0, float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", ["visual", "prompt", "everything"])
def test_unusable_rows_count_as_zero_rows(bad, where):
    generator = torch.Generator().manual_seed(3)
    visual, prompt = torch.randn(12, 6, generator=generator), torch.randn(3, 6, generator=generator)
    broken, zeroed = (visual.clone(), prompt.clone()), (visual.clone(), prompt.clone())
    rows = {"visual": (slice(2, 5), slice(0)), "prompt": (slice(0), slice(1, 2)), "everything": (slice(None),) * 2}
    for part, at in enumerate(rows[where]):
        zeroed[part][at] = 0
        broken[part][at] = bad if bad == 0 else broken[part][at]
        broken[part][at, 1] = bad  # one such entry spoils the row
    got = select(*broken, 6, 3, 2)
    assert (got.indices.tolist(), got.prompt_center.tolist()) == by_the_book(*zeroed, 6, 3, 2)


@pytest.mark.parametrize(
    "N, L, K, K_p, k",
    [
        pytest.param(10, 3, 1, 0, 1, id="one-visual-centre"),
        pytest.param(10, 3, 1, 1, 1, id="one-prompt-centre"),
        pytest.param(10, 3, 10, 4, 2, id="K-equals-N"),
        pytest.param(10, 3, 14, 12, 2, id="K-above-N"),
        pytest.param(10, 3, 4, 0, 2, id="no-prompt-centres"),
        pytest.param(10, 0, 4, 2, 2, id="no-prompt"),
        pytest.param(10, 3, 4, 4, 99, id="fold-above-N"),
        pytest.param(10, 2, 8, 6, 1, id="fewer-candidates-than-K_p"),
        pytest.param(1, 1, 1, 1, 1, id="one-token"),
    ],
)
def test_corners(N, L, K, K_p, k):
    generator = torch.Generator().manual_seed(N + L + K)
    assert agrees(torch.randn(N, 5, generator=generator), torch.randn(L, 5, generator=generator), K, K_p, k)


def test_missing_candidates_are_replaced_by_visual_centres():
    """Two prompt tokens that each propose one token cannot fill six places."""
    visual, prompt = torch.eye(10), torch.eye(10)[:2]
    indices, centre = select(visual, prompt, 8, 6, 1)
    assert len(indices) == 8 and indices[centre].tolist() == [0, 1]


def test_both_metrics_keep_the_same_tokens():
    for seed in range(20):
        visual, prompt, *budget = draw(seed)
        cosine, euclidean = (select(visual, prompt, *budget, metric=metric) for metric in ("cosine", "euclidean"))
        assert torch.equal(cosine.indices, euclidean.indices)


@pytest.mark.parametrize(
    "dtype, factor", [(torch.float16, 2.0**13), (torch.bfloat16, 2.0**120), (torch.float32, 2.0**120)]
)
def test_huge_rows_do_not_overflow(dtype, factor):
    """Rows whose squares, and whose sums, leave the range of their dtype."""
    generator = torch.Generator().manual_seed(1)
    visual = torch.randn(15, 256, generator=generator).clamp(-3, 3).to(dtype)
    prompt = torch.randn(2, 256, generator=generator).clamp(-3, 3).to(dtype)
    huge = visual * factor, prompt * factor
    assert torch.isfinite(huge[0]).all() and not torch.isfinite(huge[0].pow(2).sum(1)).all()
    assert torch.equal(select(*huge, 6, 3, 2).indices, select(visual, prompt, 6, 3, 2).indices)


def test_autocast_does_not_change_the_set():
    """Cosines in bfloat16 would order these rows differently."""
    generator = torch.Generator().manual_seed(0)
    visual = torch.randn(1, 32) + 0.05 * torch.randn(60, 32, generator=generator)
    prompt = torch.randn(5, 32, generator=generator)
    plain = select(visual, prompt, 20, 8, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = select(visual, prompt, 20, 8, 3)
    assert all(map(torch.equal, plain, cast))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"K": 0}, "K=0"),
        ({"K": -3}, "K=-3"),
        ({"K_p": 5}, "K_p=5 with K=4"),
        ({"K_p": -1}, "K_p=-1"),
        ({"k": 0}, "k=0"),
        ({"metric": "manhattan"}, "manhattan.*cosine, euclidean"),
        ({"prompt": torch.ones(3, 5)}, "differ in batch or width"),
        ({"prompt": torch.ones(1, 3, 6)}, r"\(N, d\) and \(L, d\)"),
        ({"visual": torch.ones(6)}, r"\(N, d\) and \(L, d\)"),
        ({"visual": torch.ones(2, 8, 6), "prompt": torch.ones(3, 3, 6)}, "differ in batch or width"),
    ],
)
def test_errors_say_what_is_wrong(change, message):
    arguments = {"visual": torch.ones(8, 6), "prompt": torch.ones(3, 6), "K": 4, "K_p": 2, "k": 2, **change}
    with pytest.raises(ValueError, match=message):
        select(**arguments)


@pytest.mark.parametrize("N", [8, 4])
def test_too_few_real_tokens_under_a_mask_are_an_error(N):
    """Also where the padded length is no more than K: padding must never be kept."""
    mask = torch.ones(2, N, dtype=torch.bool)
    mask[1, 3:] = False
    with pytest.raises(ValueError, match="real visual tokens"):
        select(torch.ones(2, N, 6), torch.ones(2, 3, 6), 4, 2, 2, visual_mask=mask)


def test_selection_never_waits_for_the_device(monkeypatch):
    """Tensors on "meta" have no values: whatever reads one on the host raises."""
    monkeypatch.setattr(torch, "autocast", lambda *a, **k: contextlib.nullcontext())  # meta has no autocast
    visual, prompt = torch.empty(3, 50, 8, device="meta"), torch.empty(3, 4, 8, device="meta")
    with pytest.raises(RuntimeError):
        visual.sum().item()
    mask = torch.empty(3, 4, dtype=torch.bool, device="meta")
    for prompt_mask in (None, mask):
        indices, centre = select(visual, prompt, 20, 10, 3, prompt_mask=prompt_mask)
        assert indices.shape == centre.shape == (3, 20)
    taken = visual_centers(unit_rows(visual), torch.empty(3, 50, dtype=torch.bool, device="meta"), 20, at_least=3)
    assert taken.shape == (3, 50)


def test_steps_that_are_not_needed_change_nothing():
    """On a GPU the loop runs as often as the poorest row could need; full rows must stay as they are."""
    visual, prompt, *_ = draw(4)
    units = unit_rows(visual.float())[None]
    centres = torch.zeros(1, len(visual), dtype=torch.bool)
    centres[0, :5] = True
    assert torch.equal(visual_centers(units, centres, 5, at_least=0), centres)


def test_cosines_of_equal_rows_are_equal():
    """What ties and duplicates rely on: the same row at another place of a matrix gives the same number."""
    for width in (8, 48, 100, 1024):
        rows = torch.randn(33, width, generator=torch.Generator().manual_seed(width))
        units, others = unit_rows(torch.cat([rows, rows]))[None], unit_rows(rows[:7].flip(0))[None]
        values = cosines(others, units)[0]
        assert torch.equal(values[:, :33], values[:, 33:])
        assert torch.equal(cosines(others.expand(3, -1, -1), units.expand(3, -1, -1))[1], values)
