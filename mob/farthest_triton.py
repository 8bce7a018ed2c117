"""All steps of farthest-point sampling in one launch, as a Triton kernel over rows of the Gram matrix.

In PyTorch each step is about seven small kernels, which cost more to launch than to run. Here one program per row of
the batch holds the distances of all its tokens in registers; a step is one reduction and one row of cosines that is
read. It starts from the numbers that ``mob.farthest.loop`` starts from, and these are integers on a grid: the same
tokens come out, ties included. How many a row still needs is counted on the device, so nothing waits for the host.

Why over the Gram matrix, reckoned from the data sheet of an H100 (3.3 TB/s of memory, 67 TFLOP/s in float32, of which
50 or so can be had); nothing here was measured on one. Steps follow from each other, so the latency of one is what
matters:

- a row of the Gram matrix is 11 KB at N = 2880 and 46 KB at N = 11664: one or a few microseconds from the L2 cache or
  from memory, for a single program too.
- a product with V itself reads N d numbers for a step, 47 MB at N = 2880 and d = 4096. One program alone would take
  about a millisecond; all together 15 us, but then every step ends in a barrier of the whole grid, which is safe only
  where all programs are sure to run at once.
- the Gram matrix takes 2 N^2 d operations, about 1.4 ms at N = 2880: now the larger part of a selection. In half
  precision the tensor cores would make it in a tenth of that, but with errors of a thousand steps of the grid: the
  tokens would be others.
- it takes 4 N^2 bytes, 33 MB at N = 2880 and 544 MB at N = 11664. Where it is not made: ``mob.farthest.makes_gram``.

At N = 23328 each of 1024 threads holds 32 distances, which is what there are registers for.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

MOST = 2**15  # tokens that one program can hold


def steps(gram: Tensor, taken: Tensor, distance: Tensor, K: int) -> Tensor:
    """bool (B, N): ``taken`` with the farthest tokens, one after the other, until every row has K.

    Args:
        gram: float32 (B, N, N), cosines on the grid.
        taken: bool (B, N), at least one token in each row; rows with K and more stay as they are.
        distance: float32 (B, N), 1 - cosine to the nearest taken token, -inf where one is taken or not real. No NaN.

    Raises:
        ValueError: N is more than ``MOST``.
    """
    batch, size = taken.shape
    if size > MOST:
        raise ValueError(f"{size} tokens in a row are more than the {MOST} of this kernel: use mob.farthest.loop")
    marks = taken.to(torch.uint8, memory_format=torch.contiguous_format)  # a copy: the kernel writes into it
    block = max(triton.next_power_of_2(size), 128)
    with torch.cuda.device_of(gram):  # Triton launches on the current device, which need not be the tensor's
        _steps[(batch,)](
            gram.contiguous(),
            marks,
            distance.contiguous(),
            K,
            size,
            BLOCK=block,
            num_warps=warps(block),
        )
    return marks.view(torch.bool)


def warps(block: int) -> int:
    """For up to 16 numbers in a thread, and 32 in the largest blocks: a block has 1024 threads at most, which are 32
    warps, or 16 of AMD's."""
    return min(max(block // 512, 4), 16 if torch.version.hip else 32)


@triton.jit(do_not_specialize=["K"])
def _steps(gram, marks, distance, K, N, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)  # B N N can be more than 32 bits hold
    place = tl.arange(0, BLOCK)
    inside = place < N
    gram += row * N * N
    marks += row * N
    count = tl.sum(tl.load(marks + place, mask=inside, other=0).to(tl.int32), axis=0)
    nearest = tl.load(distance + row * N + place, mask=inside, other=float("-inf"))
    for _ in range(count, K):
        farthest = tl.argmax(nearest, axis=0, tie_break_left=True)
        tl.store(marks + farthest, 1)
        cosine = tl.load(gram + farthest.to(tl.int64) * N + place, mask=inside, other=0.0)
        nearest = tl.where(place == farthest, float("-inf"), tl.minimum(nearest, 1 - cosine))
