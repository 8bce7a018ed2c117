"""The three ways of farthest-point sampling choose the same tokens, and blocks make fewer products."""

from __future__ import annotations

import time

import pytest
import torch

from mob import farthest
from mob.covering import prompt_centers, select, unit_rows, visual_centers
from mob.farthest import NEVER, cosines, costs, demanded_rows, gram_rows, in_blocks, loop


def tokens(kind, N, d, seed=0):
    """(1, N, d): independent, in clusters around a common mean as hidden states are, or with many equal ones."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(1, N, d, generator=generator)
    if kind == "random":
        return noise
    groups = torch.randn(max(2, N // 15), d, generator=generator)
    rows = groups[torch.randint(len(groups), (N,), generator=generator)]
    if kind == "equal":
        return rows[None]
    return torch.randn(1, 1, d, generator=generator) + rows / 2 + noise / 3


def ways(visual, K, start):
    units = unit_rows(visual)
    taken = torch.zeros(visual.shape[:2], dtype=torch.bool)
    taken[:, start] = True
    distance = (1 - cosines(units, units[:, start]).amax(-1)).masked_fill(taken, NEVER)
    steps = K - len(start)
    ways = [loop(taken, distance, K, steps, rows(units)) for rows in (gram_rows, demanded_rows)]
    return *ways, in_blocks(units, taken, distance, K)


@pytest.mark.parametrize("kind", ["random", "clustered", "equal"])
@pytest.mark.parametrize("N, d, K", [(40, 8, 40), (200, 32, 90), (576, 256, 64), (900, 64, 300)])
def test_all_ways_choose_the_same(kind, N, d, K):
    for seed in range(5):
        gram, demand, lazy = ways(tokens(kind, N, d, seed), K, [3, N // 2])
        assert torch.equal(gram, lazy) and torch.equal(demand, lazy) and int(lazy.sum()) == K


@pytest.mark.parametrize("groups", [1, 3])
def test_more_equal_tokens_than_a_block_holds(groups):
    """The lowest indices first, in and outside a block."""
    visual = torch.randn(1, groups, 32, generator=torch.Generator().manual_seed(0))[:, torch.arange(400) % groups]
    gram, demand, blocks = ways(visual, 90, [5])
    assert torch.equal(gram, blocks) and torch.equal(demand, blocks)
    assert groups > 1 or blocks[0].nonzero()[:, 0].tolist() == list(range(90))


def test_a_batch_with_unequal_starts():
    visual = torch.cat([tokens("clustered", 120, 32, seed) for seed in range(3)])
    units = unit_rows(visual)
    taken = torch.zeros(3, 120, dtype=torch.bool)
    taken[0, [1]] = taken[1, [2, 5, 9]] = taken[2, [0, 7]] = True
    distance = torch.stack([1 - cosines(u[None], u[t][None])[0].amax(-1) for u, t in zip(units, taken, strict=True)])
    distance = distance.masked_fill(taken, NEVER)
    lazy = in_blocks(units, taken, distance, 30)
    assert torch.equal(lazy, loop(taken, distance, 30, 29, gram_rows(units))) and lazy.sum(1).tolist() == [30] * 3


def test_few_products_are_needed(monkeypatch):
    """Of N K products of long rows, blocks leave out the larger part."""
    N, K = 2000, 150
    computed = []
    monkeypatch.setattr(farthest, "cosines", lambda a, b: computed.append(a.shape[-2] * b.shape[-2]) or cosines(a, b))
    for kind in ("random", "clustered"):
        units = unit_rows(tokens(kind, N, 2048))
        taken = torch.zeros(1, N, dtype=torch.bool).index_fill(1, torch.arange(0, N, 25), True)
        distance = (1 - cosines(units, units[:, ::25]).amax(-1)).masked_fill(taken, NEVER)
        computed.clear()
        in_blocks(units, taken, distance, K)
        assert sum(computed) < 0.6 * N * 70, kind


@pytest.mark.parametrize("patience", [0.0, 0.3, 1e9])
@pytest.mark.parametrize("stop", [None, 0.3])
def test_blocks_may_give_up_at_any_time(patience, stop, monkeypatch):
    """Clusters so tight that a block holds few of them: the answer is that of float64, whoever ends the work."""
    monkeypatch.setattr(farthest, "_PATIENCE", patience)
    for seed in range(4):
        spread = tokens("equal", 500, 64, seed) + 0.02 * tokens("random", 500, 64, seed + 9)
        units = unit_rows(spread, torch.float64)
        taken = torch.zeros(1, 500, dtype=torch.bool).index_fill(1, torch.tensor([7]), True)
        distance = (1 - cosines(units, units[:, 7:8])[..., 0]).masked_fill(taken, NEVER)
        expected = loop(taken, distance, 80, 79, demanded_rows(units), stop)
        assert torch.equal(in_blocks(units, taken, distance, 80, stop), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_select_does_not_depend_on_the_way(dtype, monkeypatch):
    visual, prompt = tokens("clustered", 600, 512)[0].to(dtype), tokens("random", 9, 512, 1)[0].to(dtype)
    chosen = []
    for price in ((0, 1, 1), (1, 0, 1), (1, 1, 0)):
        monkeypatch.setattr(farthest, "costs", lambda *sizes, price=price: price)
        chosen.append(select(visual, prompt, 80, 40, 5).indices)
    assert torch.equal(chosen[0], chosen[1]) and torch.equal(chosen[0], chosen[2])


def test_each_way_has_its_sizes():
    """Many steps of a batch of small pictures by the Gram matrix, a few by rows, all else in blocks."""
    cheapest = [min(range(3), key=costs(*sizes).__getitem__) for sizes in SIZES]
    assert cheapest == [0, 1, 2, 2, 2]


SIZES = [(16, 196, 192, 40), (16, 196, 192, 8), (1, 576, 1024, 32), (1, 2880, 4096, 160), (8, 576, 4096, 128)]


def test_selection_is_faster_than_the_plain_loop():
    """A ratio within one process, generous: the plain loop reads one row of products for every step."""
    units = unit_rows(tokens("random", 1500, 2048))
    centres = prompt_centers(units, unit_rows(tokens("random", 20, 2048, 1)), 60, 8, None, None)

    def plain():
        taken = centres.clone()
        distance = (1 - cosines(units, units[centres][None]).amax(-1)).masked_fill(taken, NEVER)
        for _ in range(200 - int(taken.sum())):
            new = distance.argmax(1)
            taken[0, new] = True
            distance = torch.minimum(distance, 1 - cosines(units, units[:, new])[..., 0])
            distance[0, new] = NEVER
        return taken

    def seconds(run):
        start = time.process_time()
        out = run()
        return time.process_time() - start, out

    pairs = [(seconds(plain), seconds(lambda: visual_centers(units, centres, 200))) for _ in range(5)]
    assert all(torch.equal(slow[1], fast[1]) for slow, fast in pairs)
    assert min(fast[0] for _, fast in pairs) < 0.8 * min(slow[0] for slow, _ in pairs)
