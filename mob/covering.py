"""Algorithm 1 of MoB (arXiv 2505.10118) as pure tensor functions: which visual tokens to keep.

Every function takes one sample, ``visual`` (N, d) and ``prompt`` (L, d), or a batch, (B, N, d) and (B, L, d), with an
optional bool mask (B, N) or (B, L) whose True entries are real tokens. Nothing here knows about models.

Exactness. Rows are normalised and compared in float32 (small inputs on CPUs in float64) whatever their dtype, and
cosines are rounded to a grid of 2^-20 (about 1e-6, ten times the error of the product), so that equal tokens compare
equal, but for a rare value at the edge of a step, and ties go to the lowest index. (A user's TF32 setting is left
alone, and is far coarser than that.)
A row that holds NaN or infinity, or only zeros, counts as the zero vector: like nothing, far from everything.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mob.farthest import NEVER, cosines, sample
from mob.tensors import places_of

METRICS = ("cosine", "euclidean")
_SMALL = 2**18  # entries


class Selection(NamedTuple):
    """``indices`` (B, K) or (K,), int64, ascending; ``prompt_center`` of the same shape, True for a prompt centre."""

    indices: Tensor
    prompt_center: Tensor


class Ragged(NamedTuple):
    """A selection of unlike sizes: ``real`` (B, K) or (K,) bool, False for entries that are not kept.

    The indices of a row are distinct. In what ``select`` returns, those that are kept stand first, ascending.
    """

    indices: Tensor
    prompt_center: Tensor
    real: Tensor


@torch.no_grad()
def select(
    visual: Tensor,
    prompt: Tensor,
    K: int,
    K_p: int | Tensor,
    k: int | Tensor,
    *,
    metric: str = "cosine",
    visual_mask: Tensor | None = None,
    prompt_mask: Tensor | None = None,
    epsilon: float | None = None,
    at_most: int | None = None,
) -> Selection | Ragged:
    """Keep K of N visual tokens: K_p prompt centres, then farthest-point sampling (paper, Algorithm 1).

    Args:
        visual: (N, d) or (B, N, d), any floating dtype.
        prompt: (L, d) or (B, L, d); L may be 0.
        K: tokens to keep; K >= N keeps all.
        K_p: prompt centres among them. Fewer distinct candidates than K_p: the rest of the budget goes to visual
            centres, so that exactly K indices always come back.
        k: covering fold, the visual tokens that each prompt token proposes. K_p and k may be tensors of integers (B,),
            or () for one sample, on the device of the tokens; what lies outside 0..K, or below 1, is cut off there.
        metric: "cosine" or "euclidean". Both mean distances between unit rows, which order all pairs alike
            (|a-b|^2 = 2 - 2 cos), so both select the same tokens.
        visual_mask, prompt_mask: (B, N), (B, L) bool, True = real; (N,), (L,) for one sample.
        epsilon: stop once every token lies within this distance of a kept one, Euclidean between unit rows, 0..2; K is
            then the most that is kept, and the answer is ``Ragged``. Prompt centres stay whatever they cover, and so
            does one token. (A row that counts as the zero vector lies at sqrt(2) from everything here.)
        at_most: a bound of K_p where it is a tensor, K by default; it saves work on accelerators.

    Raises:
        ValueError: budgets, shapes or the metric make no sense, or a row has fewer than K real visual tokens.
    """
    _check(visual, prompt, K, K_p, k, metric, epsilon)
    single = visual.ndim == 2
    if single:
        visual, prompt = visual[None], prompt[None]
        visual_mask = None if visual_mask is None else visual_mask[None]
        prompt_mask = None if prompt_mask is None else prompt_mask[None]
    K = min(K, visual.shape[1])
    if visual_mask is not None and bool((visual_mask.sum(1) < K).any()):
        raise ValueError(f"K={K} is more than the real visual tokens of a row: group rows by size, or lower K")
    dtype = _working_dtype(visual)
    units, prompt_units = unit_rows(visual, dtype), unit_rows(prompt, dtype)
    most = K if at_most is None else min(at_most, K)
    if isinstance(K_p, Tensor):
        K_p = K_p.reshape(-1).clamp(0, most)
    else:
        K_p = most = min(K_p, K)
    k = k.reshape(-1).clamp_min(1) if isinstance(k, Tensor) else k
    centres = prompt_centers(units, prompt_units, K_p, k, visual_mask, prompt_mask)
    sure = _guaranteed(prompt, K_p, k, prompt_mask)
    stop = None if epsilon is None else epsilon**2 / 2  # |a-b|^2 = 2 (1 - cos)
    taken = visual_centers(units, centres, K, visual_mask, at_least=sure, at_most=most, stop=stop)
    indices = places_of(taken, K)
    selection = Selection(indices, centres.gather(1, indices))
    if epsilon is not None:
        selection = Ragged(*selection, taken.gather(1, indices))
    return type(selection)(*(tensor[0] for tensor in selection)) if single else selection


def prompt_centers(
    units: Tensor,
    prompt_units: Tensor,
    K_p: int | Tensor,
    k: int | Tensor,
    visual_mask: Tensor | None,
    prompt_mask: Tensor | None,
) -> Tensor:
    """k-fold nearest-neighbour cover of the prompt: bool (B, N), True for at most K_p prompt centres.

    Each prompt token proposes its k most similar visual tokens; a token proposed twice keeps its largest similarity;
    the K_p best proposals win. K_p and k are integers, or tensors of integers (B,).
    """
    chosen = torch.zeros(units.shape[:2], dtype=torch.bool, device=units.device)
    if prompt_units.shape[1] == 0 or (not isinstance(K_p, Tensor) and K_p == 0):
        return chosen
    similarity = cosines(prompt_units, units)
    if visual_mask is not None:
        similarity = similarity.masked_fill(~visual_mask[:, None], NEVER)
    if prompt_mask is not None:
        similarity = similarity.masked_fill(~prompt_mask[..., None], NEVER)
    scores = similarity.masked_fill(~_most_similar(similarity, k), NEVER).amax(1)
    ranked, order = scores.sort(dim=-1, descending=True, stable=True)
    if isinstance(K_p, Tensor):
        ranked = ranked.masked_fill(_beyond(K_p, ranked), NEVER)
    else:
        ranked, order = ranked[:, :K_p], order[:, :K_p]
    return chosen.scatter(1, order, ranked > NEVER)


def _most_similar(similarity: Tensor, k: int | Tensor) -> Tensor:
    """bool (B, L, N): the k largest of each row, the first of equal ones. No full sort, which would cost more than the
    product that made the similarities."""
    if isinstance(k, Tensor):
        k = k.clamp_max(similarity.shape[-1])[:, None, None]
        ranked = similarity.sort(dim=-1, descending=True).values
        least = ranked.gather(-1, (k - 1).expand(*ranked.shape[:2], 1))
    else:
        k = min(k, similarity.shape[-1])
        least = similarity.topk(k, dim=-1).values[..., -1:]
    more, equal = similarity > least, similarity == least
    return more | (equal & (equal.cumsum(-1, dtype=torch.int32) <= k - more.sum(-1, keepdim=True)))


def _beyond(count: Tensor, ranked: Tensor) -> Tensor:
    """bool (B, n): the places after the first ``count`` (B,) of ``ranked`` (B, ..., n)."""
    return torch.arange(ranked.shape[-1], device=ranked.device) >= count[:, None]


def visual_centers(
    units: Tensor,
    centres: Tensor,
    K: int,
    visual_mask: Tensor | None = None,
    *,
    at_least: int = 0,
    at_most: int | None = None,
    stop: float | None = None,
) -> Tensor:
    """Farthest-point sampling from the given centres until every row holds K tokens: bool (B, N) of all kept tokens.

    Without any centre the first one is the token farthest from the mean direction (our choice, the paper is silent).
    ``at_least`` and ``at_most`` (by default K) are bounds of the centres that a row has; they save work where the exact
    numbers would cost a synchronisation with the device. ``stop``: see ``mob.farthest.sample``.
    """
    real = torch.ones_like(centres) if visual_mask is None else visual_mask
    on_host = centres.device.type == "cpu"  # where looking at the numbers costs no wait
    if at_least < 1:
        needed = ~centres.any(1)
        if not on_host or bool(needed.any()):
            centres = centres | _first_center(units, real, needed)
    taken = centres
    counts = taken.sum(1)
    most = int(counts.max()) if on_host else max(K if at_most is None else at_most, 1)
    distance = _distance_to(units, taken, most).masked_fill(taken | ~real, NEVER)
    return sample(units, taken, distance, K, K - (int(counts.min()) if on_host else max(at_least, 1)), stop)


def unit_rows(rows: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Rows divided by their length in ``dtype``; unusable rows become zero. Shape unchanged."""
    rows = rows.to(dtype)
    length = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    # Far from where squares overflow or vanish; never so for hidden states.
    plain = (length > 1e-12) & (length < 1e12)
    if rows.device.type == "cpu" and bool(plain.all()):
        return rows / length
    # Other rows are first divided by their largest entry, plain ones by 1: no second copy of all rows for them.
    largest = torch.linalg.vector_norm(rows, float("inf"), dim=-1, keepdim=True)
    usable = torch.isfinite(largest) & (largest > 0)
    rows = rows / largest.masked_fill(plain | ~usable, 1.0)
    length = torch.linalg.vector_norm(rows, dim=-1, keepdim=True).clamp_min(torch.finfo(dtype).tiny)
    return (rows / length).masked_fill_(~usable, 0.0)


def _working_dtype(visual: Tensor) -> torch.dtype:
    """float64 where that costs nothing to speak of: no two tokens are then confused by the error of a product."""
    small = visual.shape[-2] * visual.shape[-1] <= _SMALL
    return torch.float64 if small and visual.device.type == "cpu" else torch.float32


def _first_center(units: Tensor, real: Tensor, needed: Tensor) -> Tensor:
    """bool (B, N): the token farthest from the mean direction in the rows where ``needed``, nothing elsewhere."""
    mean = unit_rows((units * real[..., None]).sum(1, keepdim=True), units.dtype)
    away = (1 - cosines(units, mean)[..., 0]).masked_fill(~real, NEVER)
    first = torch.zeros_like(real).scatter(1, away.argmax(1)[:, None], True)
    return first & needed[:, None]


def _distance_to(units: Tensor, taken: Tensor, most: int) -> Tensor:
    """1 - cosine to the nearest taken token, float32 (B, N). At most ``most`` tokens are taken in a row."""
    order = places_of(taken, most)
    nearest = cosines(units, units.gather(1, order[..., None].expand(-1, -1, units.shape[-1])))
    return 1 - nearest.masked_fill(~taken.gather(1, order)[:, None], NEVER).amax(-1)


def _guaranteed(prompt: Tensor, K_p: int | Tensor, k: int | Tensor, prompt_mask: Tensor | None) -> int:
    """Prompt centres that every row is sure to have: one prompt token alone proposes k distinct tokens."""
    if isinstance(K_p, Tensor) or isinstance(k, Tensor):
        return 0
    return 0 if prompt_mask is not None or prompt.shape[-2] == 0 else min(K_p, k)


def _check(
    visual: Tensor, prompt: Tensor, K: int, K_p: int | Tensor, k: int | Tensor, metric: str, epsilon: float | None
) -> None:
    if metric not in METRICS:
        raise ValueError(f"metric={metric!r}: use one of {', '.join(METRICS)}")
    if visual.ndim not in (2, 3) or prompt.ndim != visual.ndim:
        raise ValueError(
            f"visual {tuple(visual.shape)} and prompt {tuple(prompt.shape)}: give (N, d) and (L, d), or (B, N, d) and "
            "(B, L, d)"
        )
    if visual.shape[-1] != prompt.shape[-1] or visual.shape[:-2] != prompt.shape[:-2]:
        raise ValueError(f"visual {tuple(visual.shape)} and prompt {tuple(prompt.shape)} differ in batch or width")
    if K <= 0:
        raise ValueError(f"K={K}: keep at least one visual token; leave K unset to switch pruning off")
    if epsilon is not None and not 0 <= epsilon <= 2:
        raise ValueError(f"epsilon={epsilon}: distances of unit rows lie between 0 and 2, choose one of them")
    for name, count in (("K_p", K_p), ("k", k)):
        if isinstance(count, Tensor) and (
            count.dtype.is_floating_point or count.numel() != (1 if visual.ndim == 2 else len(visual))
        ):
            raise ValueError(f"{name} is {count.dtype} of {tuple(count.shape)}: give one integer for each sample")
    if not isinstance(K_p, Tensor) and not 0 <= K_p <= K:
        raise ValueError(f"K_p={K_p} with K={K}: prompt centres are part of the budget, choose 0 <= K_p <= K")
    if not isinstance(k, Tensor) and k < 1:
        raise ValueError(f"k={k}: every prompt token proposes at least one visual token, choose k >= 1")
