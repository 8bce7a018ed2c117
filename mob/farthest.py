"""Farthest-point sampling on unit rows: always take the token whose nearest taken token is farthest away.

Four ways to the same indices. ``loop`` takes one token after the other in all rows of a batch, with rows of the Gram
matrix or with products made on demand. ``mob.farthest_triton`` does the first of these in one launch on a GPU.
``in_blocks`` is for CPUs, where products of long rows are what costs: it makes them only for tokens that could be the
farthest, and many at once.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable
from types import ModuleType

import numpy
import torch
from torch import Tensor

from mob.tensors import product

GRID = 2.0**20
NEVER = float("-inf")
_PATIENCE = 2.0  # products of blocks, as a multiple of those of whole rows, which are about five times as dear
_BLOCK = 64  # tokens that are brought up to date together


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Cosines of unit rows on the comparison grid: (B, n, d), (B, m, d) -> float32 (B, n, m)."""
    # In place: the Gram matrix of many tokens is the largest thing that a selection makes.
    return product(a, b.transpose(-1, -2)).mul_(GRID).round_().div_(GRID).float()


def sample(units: Tensor, taken: Tensor, distance: Tensor, K: int, steps: int, stop: float | None = None) -> Tensor:
    """bool (B, N): ``taken`` with more tokens, until every row has K, in the way that is fastest for these sizes.

    Args:
        units: (B, N, d) unit rows.
        taken: bool (B, N), at least one token in each row.
        distance: float32 (B, N), 1 - cosine to the nearest taken token, -inf where a token is taken or not real.
        steps: how many tokens the row with the fewest still needs; rows that are full ignore the rest.
        stop: a row is full as well once no token is farther than this, 1 - cosine, from the nearest taken one.
    """
    if units.device.type != "cpu":
        return on_accelerator(units, taken, distance, K, steps, stop)
    gram, demand, blocks = costs(*units.shape, steps)
    if blocks < min(gram, demand):
        return in_blocks(units, taken, distance, K, stop)
    return loop(taken, distance, K, steps, gram_rows(units) if gram < demand else demanded_rows(units), stop)


def costs(batch: int, size: int, width: int, steps: int) -> tuple[float, float, float]:
    """Estimated seconds on a CPU with the Gram matrix, with rows on demand, and in blocks.

    Fitted to measurements on a machine without AVX-512; only ratios matter. Only small batches of small pictures, whose
    steps are taken together, are left to the first two.
    """
    rate = 3.6e10 * torch.get_num_threads()
    gram = batch * size**2 * width / rate + steps * (3e-5 + batch * size * 1e-9)
    demand = steps * (batch * size * width * 1.6e-10 + 3e-5)
    blocks = batch * (3e-4 + steps * (6e-5 + size * width / rate))
    return gram, demand, blocks


def on_accelerator(
    units: Tensor, taken: Tensor, distance: Tensor, K: int, steps: int, stop: float | None = None
) -> Tensor:
    """``sample`` where looking at a number would mean waiting for the device: nothing here does.

    The kernel knows no ``stop``; with one, the loop runs all steps, and rows that are full ignore the rest."""
    if not makes_gram(*units.shape, steps):
        return loop(taken, distance, K, steps, demanded_rows(units), stop)
    gram = cosines(units, units)
    if stop is not None or (kernel := triton_kernel(units)) is None:
        return loop(taken, distance, K, steps, rows_of(gram), stop)
    return kernel.steps(gram, taken, distance, K)


def makes_gram(batch: int, size: int, width: int, steps: int) -> bool:
    """Whether an accelerator makes the Gram matrix: where that is cheaper than a pass over all rows for every step, and
    takes no more memory than the decoder layer before did.

    Of each token a Gram matrix holds 4 N bytes, and the activations of an MLP (three or four times 2.7 d numbers of two
    bytes) 16 d to 22 d. Speeds are about two thirds of an H100's data sheet, not measured: 40 TFLOP/s in float32,
    2.5 TB/s, and ten launches of 6 us for a step that makes its own products.
    """
    gram = 2 * batch * size**2 * width / 4e13
    demand = steps * max(6e-5, 4 * batch * size * width / 2.5e12)
    return size <= 4 * width and gram < demand


def triton_kernel(units: Tensor) -> ModuleType | None:
    """``mob.farthest_triton`` where it runs on this tensor: on CUDA, with Triton. MOB_TRITON=0 switches it off."""
    if units.device.type != "cuda" or os.environ.get("MOB_TRITON") == "0":
        return None
    kernel = _tried(units.device)
    return None if kernel is None or units.shape[1] > kernel.MOST else kernel


@functools.cache
def _tried(device: torch.device) -> ModuleType | None:
    """The kernel, once it has run on two tokens: Triton may be there without the C compiler that it needs, say."""
    try:
        from mob import farthest_triton

        taken = torch.tensor([[True, False]]).to(device, non_blocking=True)
        farthest_triton.steps(taken.new_zeros(1, 2, 2, dtype=torch.float32), taken, taken.float(), 2)
    except ImportError:
        return None
    except Exception as problem:
        warnings.warn(
            f"Triton does not work here ({type(problem).__name__}: {problem}): tokens are selected by PyTorch alone, "
            "which is slower. MOB_TRITON=0 silences this",
            stacklevel=2,
        )
        return None
    return farthest_triton


def gram_rows(units: Tensor) -> Callable[[Tensor], Tensor]:
    """A function (B, 1) places -> (B, N) cosines, from a Gram matrix that is made once."""
    return rows_of(cosines(units, units))


def rows_of(gram: Tensor) -> Callable[[Tensor], Tensor]:
    """The same, from a Gram matrix (B, N, N) that is there."""
    size = gram.shape[1]
    return lambda place: gram.gather(1, place[..., None].expand(-1, -1, size))[:, 0]


def demanded_rows(units: Tensor) -> Callable[[Tensor], Tensor]:
    """The same, each row made when it is asked for."""
    width = units.shape[2]
    return lambda place: cosines(units, units.gather(1, place[..., None].expand(-1, -1, width)))[..., 0]


def loop(
    taken: Tensor,
    distance: Tensor,
    K: int,
    steps: int,
    row_of: Callable[[Tensor], Tensor],
    stop: float | None = None,
) -> Tensor:
    """One token after the other, in all rows of the batch at once, without a look at any number."""
    count = taken.sum(1)
    for _ in range(steps):
        farthest = distance.argmax(1)[:, None]  # the first of equal maxima
        wanted = (count < K)[:, None]
        if stop is not None:  # distances only shrink: a row that has stopped does not start again
            wanted = wanted & (distance.gather(1, farthest) > stop)
        taken = taken.scatter(1, farthest, taken.gather(1, farthest) | wanted)
        distance = torch.minimum(distance, 1 - row_of(farthest)).scatter(1, farthest, NEVER)
        count = count + 1
    return taken


def in_blocks(units: Tensor, taken: Tensor, distance: Tensor, K: int, stop: float | None = None) -> Tensor:
    """Row by row of the batch, on a CPU.

    A distance only ever shrinks, so an old one is an upper bound. The tokens with the largest bounds form a block: they
    are brought up to date, with one product of matrices, and compared with each other, with another. From then on
    tokens are taken within the block, until the largest bound lies outside it. Products are made in float64, so that
    equal tokens stay equal whatever block they are in. Where blocks have made as many products as whole rows would,
    which cost several times as much each, and more, whole rows do the rest.
    """
    return torch.stack([_one(*row, K, stop) for row in zip(units, taken, distance, strict=True)])


def _one(units: Tensor, taken: Tensor, bounds: Tensor, K: int, stop: float | None) -> Tensor:
    """(N, d), (N,), (N,) -> bool (N,)."""
    taken, bounds = taken.clone(), bounds.clone()
    steps = K - int(taken.sum())
    centres = units.new_empty(steps, units.shape[1], dtype=torch.float64)
    # How many of the new centres a token's bound takes into account.
    known = torch.zeros(len(units), dtype=torch.int64, device=units.device)
    step, products, stopped = 0, 0, False
    while step < steps and not stopped:
        if products > _PATIENCE * steps * len(units):
            return _by_rows(units, taken, bounds, centres[:step], K, stop)
        block = _largest(bounds)
        rows = units[block].double()
        near, made = _up_to_date(rows, bounds[block], known[block], centres[:step])
        bounds[block] = NEVER
        rival = int(bounds.argmax())  # the first of the farthest outside
        limit = float(bounds[rival]), int((block < rival).sum())
        places, stopped = _within(near, 1 - cosines(rows, rows), limit, steps - step, stop)
        new = torch.tensor(places, dtype=torch.int64, device=units.device)
        taken[block[new]] = True
        centres[step : step + len(new)] = rows[new]
        step += len(new)
        bounds[block], known[block] = near, step
        products += made + len(block) ** 2
    return taken


def _largest(bounds: Tensor) -> Tensor:
    """Places of the largest bounds, ascending; the first of the very largest is among them, whatever topk does."""
    block = bounds.topk(min(_BLOCK, len(bounds))).indices
    first = bounds.argmax()
    if not bool((block == first).any()):
        block[-1] = first
    return block.sort().values


def _up_to_date(rows: Tensor, bounds: Tensor, known: Tensor, centres: Tensor) -> tuple[Tensor, int]:
    """Distances of a block's tokens, in view of the centres that they have missed, and how many products that took."""
    first = int(known.min())
    if first == len(centres):
        return bounds, 0
    away = 1 - cosines(rows, centres[first:])
    counted = torch.arange(first, len(centres), device=known.device) < known[:, None]
    return torch.minimum(bounds, away.masked_fill(counted, float("inf")).amin(1)), away.numel()


def _within(
    near: Tensor, apart: Tensor, limit: tuple[float, int], most: int, stop: float | None
) -> tuple[list[int], bool]:
    """Places taken within a block, and whether ``stop`` was reached. ``near`` (n,), distances, is brought up to date
    for them. ``limit``: the distance of the rival outside, and how many of the block have the right of way when equal.
    """
    distance, others = near.numpy(), apart.numpy()  # a step on so few numbers costs less there
    places: list[int] = []
    while len(places) < most:
        place = int(distance.argmax())
        far = float(distance[place])
        if far < limit[0] or (far == limit[0] and place >= limit[1]):
            break
        if stop is not None and far <= stop:
            return places, True
        places.append(place)
        numpy.minimum(distance, others[place], out=distance)
        distance[place] = NEVER
    return places, False


def _by_rows(units: Tensor, taken: Tensor, bounds: Tensor, centres: Tensor, K: int, stop: float | None) -> Tensor:
    """The rest, where blocks do not pay: clusters so tight that a block holds few of them."""
    away = 1 - cosines(units[None], centres[None].to(units.dtype))[0].amax(1)
    distance = torch.minimum(bounds, away)  # minus infinity where taken
    rest = K - int(taken.sum())
    return loop(taken[None], distance[None], K, rest, demanded_rows(units[None]), stop)[0]
