"""The Triton kernel in Triton's interpreter. Run by test_farthest_triton.py in a process with TRITON_INTERPRET=1."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from mob import covering, farthest, farthest_triton
from mob.covering import select, unit_rows
from mob.farthest import NEVER, cosines, gram_rows, loop
from mob.farthest_triton import MOST, steps


def by_hand(gram: torch.Tensor, taken: torch.Tensor, real: torch.Tensor, K: int) -> list[int]:
    """One row, token by token, in whole steps of the grid."""
    cosine = np.rint(gram.double().numpy() * 2**20).astype(np.int64)
    chosen = taken.nonzero()[:, 0].tolist()
    while len(chosen) < K:
        best, far = None, -1
        for token in range(len(cosine)):
            if token in chosen or not real[token]:
                continue
            distance = 2**20 - max(cosine[token, centre] for centre in chosen)
            if distance > far:  # ties: the first stays
                best, far = token, distance
        chosen.append(best)
    return sorted(chosen)


def agree(visual: torch.Tensor, taken: torch.Tensor, K: int, real: torch.Tensor | None = None) -> None:
    """Kernel, loop and brute force, on visual (B, N, d) from taken (B, N)."""
    units = unit_rows(visual)
    real = torch.ones_like(taken) if real is None else real
    gram = cosines(units, units)
    nearest = gram.masked_fill(~taken[:, None], NEVER).amax(-1)
    distance = (1 - nearest).masked_fill(taken | ~real, NEVER)
    before = taken.clone(), distance.clone()
    got = steps(gram, taken, distance, K)
    assert torch.equal(taken, before[0]) and torch.equal(distance, before[1])
    assert got.dtype == torch.bool
    assert torch.equal(got, loop(taken, distance, K, K - int(taken.sum(1).min()), gram_rows(units)))
    for row, kept in enumerate(got):
        assert kept.nonzero()[:, 0].tolist() == by_hand(gram[row], taken[row], real[row], K)


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def starts(batch: int, size: int, *places: list[int]) -> torch.Tensor:
    taken = torch.zeros(batch, size, dtype=torch.bool)
    for row, at in enumerate(places):
        taken[row, at] = True
    return taken


@pytest.mark.parametrize("N", [1, 2, 3, 31, 127, 128, 129, 200])
def test_every_size_of_block(N):
    """Also sizes that leave most of a block empty. K from none more to all, where there are few."""
    for K in sorted({1, min(N, 15), N if N < 40 else 2}):
        agree(rows(1, N, 8, seed=N), starts(1, N, [N // 2]), K)


def test_all_of_more_than_a_block():
    agree(rows(1, 130, 8), starts(1, 130, range(0, 110)), 130)


def test_rows_of_a_batch_stop_on_their_own():
    """One, three, five and six tokens are there at the start; the last has more than are asked for."""
    agree(rows(4, 40, 6), starts(4, 40, [0], [3, 7, 39], [1, 2, 3, 4, 5], [8, 9, 10, 11, 12]), 5)
    full = starts(2, 40, [0, 1, 2], [5])
    gram = cosines(*[unit_rows(rows(2, 40, 6))] * 2)
    got = steps(gram, full, (1 - gram.masked_fill(~full[:, None], NEVER).amax(-1)).masked_fill(full, NEVER), 2)
    assert torch.equal(got[0], full[0]) and got[1].sum() == 2


def junk(kind: str) -> torch.Tensor:
    visual = rows(2, 60, 8)
    if kind == "repeated":
        visual = visual[:, torch.randint(6, (60,), generator=torch.Generator().manual_seed(1))]
    elif kind == "constant":
        visual = torch.ones_like(visual)
    elif kind == "zero":
        visual[:, 10:50] = 0
    elif kind == "all zero":
        visual = torch.zeros_like(visual)
    elif kind == "not numbers":
        visual[0, 5:9], visual[1, ::7], visual[0, 40] = float("nan"), float("inf"), float("-inf")
    elif kind == "opposite":
        visual = visual * torch.tensor([1.0, -1.0]).repeat(30)[:, None]
    return visual


@pytest.mark.parametrize("kind", ["repeated", "constant", "zero", "all zero", "not numbers", "opposite"])
def test_ties_and_unusable_rows(kind):
    """More tokens than there are distinct ones: the lowest index wins every time."""
    for K in (3, 20, 60):
        agree(junk(kind), starts(2, 60, [59], [30, 31]), K)


def test_padding_is_never_taken():
    real = torch.ones(3, 50, dtype=torch.bool)
    real[0, :20] = real[1, 30:] = real[2, ::2] = False
    agree(rows(3, 50, 4), starts(3, 50, [25], [0, 3], [1]), 20, real)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 10**6))
def test_any_batch(seed):
    generator = torch.Generator().manual_seed(seed)

    def pick(low, high):
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    batch, N = pick(1, 3), pick(2, 50)
    # Few directions in few dimensions: many equal distances.
    visual = torch.randint(-1, 2, (batch, N, pick(1, 4)), generator=generator).float()
    real = torch.rand(batch, N, generator=generator) > 0.2
    real[:, 0] = True
    taken = (torch.rand(batch, N, generator=generator) < 0.1) & real
    taken[:, 0] |= ~taken.any(1)
    least, most = int(taken.sum(1).max()), int(real.sum(1).min())
    if least <= most:
        agree(visual, taken, pick(least, most), real)


def test_strides_of_the_inputs_do_not_matter():
    units = unit_rows(rows(2, 30, 8))
    gram, taken = cosines(units, units), starts(2, 30, [1], [2])
    distance = (1 - gram.masked_fill(~taken[:, None], NEVER).amax(-1)).masked_fill(taken, NEVER)
    expected = steps(gram, taken, distance, 12)
    turned = [one.transpose(0, 1).contiguous().transpose(0, 1) for one in (gram, taken, distance)]
    assert not any(one.is_contiguous() for one in turned)
    assert torch.equal(steps(*turned, 12), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("N, d, K, K_p, k", [(300, 1024, 24, 8, 4), (40, 64, 12, 0, 1), (26, 48, 26, 9, 2)])
def test_select_on_the_path_of_accelerators(dtype, N, d, K, K_p, k, monkeypatch):
    """Algorithm 1 with the kernel as its last step, against itself with the loop and against brute force."""
    visual, prompt = rows(2, N, d, seed=K).to(dtype), rows(2, 5, d, seed=1).to(dtype)
    visual[:, N // 2 :: 3] = visual[:, :1]  # equal tokens
    plain = select(visual, prompt, K, K_p, k)
    asked = []

    def kernel(units):
        asked.append(len(units))
        return farthest_triton

    monkeypatch.setattr(farthest, "triton_kernel", kernel)
    monkeypatch.setattr(covering, "sample", farthest.on_accelerator)
    got = select(visual, prompt, K, K_p, k)
    assert asked == [2]
    assert torch.equal(got.indices, plain.indices) and torch.equal(got.prompt_center, plain.prompt_center)
    for row in range(2) if N < 100 else ():  # the reference is slow
        slow = reference.select(visual[row].double().numpy(), prompt[row].double().numpy(), K, K_p, k)
        assert got.indices[row].tolist() == slow[0]


def test_more_tokens_than_one_program_holds():
    with pytest.raises(ValueError, match=f"{MOST + 1} tokens.*loop"):
        steps(
            *(
                torch.empty(1, MOST + 1, device="meta", dtype=kind)
                for kind in (torch.float32, torch.bool, torch.float32)
            ),
            2,
        )


def test_the_trial_run_passes():
    assert farthest._tried(torch.device("cpu")) is farthest_triton
