"""Sums of merged rows, in every precision and both ways of making them."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from mob.tensors import _products, _sums, merge


@given(st.integers(0, 2**31), st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]))
def test_merged_rows_are_means(seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(2, 9, 3, generator=generator).to(dtype)
    into = torch.randint(-1, 9, (2, 9), generator=generator)
    merged = merge(rows, into)
    assert merged.dtype == dtype
    for row in range(2):
        for place in range(9):
            members = [rows[row, i].double() for i in range(9) if into[row, i] == place]
            expected = torch.stack(members).mean(0).to(dtype) if len(members) > 1 else rows[row, place]
            assert torch.allclose(
                merged[row, place].double(), expected.double(), rtol=torch.finfo(dtype).eps, atol=1e-6
            )


def test_large_rows_do_not_run_over_in_half_precision():
    rows = torch.full((1, 200, 2), 600.0, dtype=torch.float16)
    into = torch.zeros(1, 200, dtype=torch.int64)
    assert (merge(rows, into)[0, 0] == 600).all()


@given(st.integers(0, 2**31))
def test_both_ways_to_add_agree(seed):
    generator = torch.Generator().manual_seed(seed)
    rows, into = torch.randn(2, 11, 4, generator=generator), torch.randint(-1, 11, (2, 11), generator=generator)
    there, index = into >= 0, into.clamp_min(0)
    wide = rows.masked_fill(~there[..., None], 0)
    assert torch.allclose(_sums(wide, index), _products(wide, index, there), atol=1e-6)
