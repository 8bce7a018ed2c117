"""From measured tokens to prototypes: density-peaks clustering, the filter within a picture, recurrence over pictures,
and duplicates. Pure functions."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mob.covering import unit_rows

NEIGHBOURS = 5
_NOISE = 1e-6  # breaks ties of density; drowned in half precision, so everything is float32
_CHUNK = 1024


class Clusters(NamedTuple):
    """``labels`` (n,) int64, from 0; ``centres`` (c,) the row that each cluster grew from."""

    labels: Tensor
    centres: Tensor


@torch.no_grad()
def dpc_knn(rows: Tensor, clusters: int, *, neighbours: int = NEIGHBOURS, seed: int = 0) -> Clusters:
    """Density-peaks clustering with densities from nearest neighbours.

    Distances are Euclidean over sqrt(D). Density is exp of minus the mean squared distance to the nearest rows, a row
    itself among them. Centres are the rows with the largest density times distance to anything denser; every other row
    joins its nearest centre. Ties are broken by seeded noise on the density.

    Args:
        rows: (n, D), any floating dtype; computed in float32.
        clusters: at most so many; no more than rows.
    """
    if clusters < 1 or neighbours < 1:
        raise ValueError(f"clusters={clusters}, neighbours={neighbours}: both must be at least 1")
    rows = rows.float()
    count = len(rows)
    if not count:
        empty = torch.zeros(0, dtype=torch.long)
        return Clusters(empty, empty)
    noise = torch.rand(count, generator=torch.Generator().manual_seed(seed)).to(rows.device) * _NOISE
    density, farthest = torch.empty_like(noise), rows.new_zeros(())
    for part in torch.arange(count, device=rows.device).split(_CHUNK):
        distance = _distances(rows[part], rows)
        nearest = distance.topk(min(neighbours, count), largest=False).values
        density[part] = (-nearest.square().mean(1)).exp()
        farthest = torch.maximum(farthest, distance.amax())
    density = density + noise
    delta = torch.empty_like(density)
    for part in torch.arange(count, device=rows.device).split(_CHUNK):
        denser = density > density[part, None]
        delta[part] = _distances(rows[part], rows).where(denser, farthest).amin(1)
    order = (density * delta).sort(descending=True, stable=True).indices
    centres = order[: min(clusters, count)]
    labels = torch.cat([_distances(part, rows[centres]).argmin(1) for part in rows.split(_CHUNK)])
    labels[centres] = torch.arange(len(centres), device=rows.device)
    return Clusters(labels, centres)


def _distances(a: Tensor, b: Tensor) -> Tensor:
    # By differences: products would lose the small distances, which decide densities.
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist") / a.shape[1] ** 0.5


def within_picture(flagged: Tensor, labels: Tensor, largest: int) -> Tensor:
    """bool (n,): flagged tokens of one picture whose cluster, over all its tested tokens, has at most ``largest``."""
    return flagged & (labels.bincount()[labels] <= largest)


def recurring(labels: Tensor, pictures: Tensor, least: int) -> list[int]:
    """Clusters with tokens of more than ``least`` different pictures, in the order in which they first appear.

    Args:
        labels, pictures: (n,) cluster and picture of each token.
    """
    seen: dict[int, set[int]] = {}
    for cluster, picture in zip(labels.tolist(), pictures.tolist(), strict=True):
        seen.setdefault(cluster, set()).add(picture)
    return [cluster for cluster, its in seen.items() if len(its) > least]


def members(labels: Tensor, clusters: list[int]) -> Tensor:
    """(m,) rows of the given clusters: cluster after cluster, within each in their order."""
    parts = [(labels == cluster).nonzero()[:, 0] for cluster in clusters]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.long)


def without_duplicates(rows: Tensor) -> Tensor:
    """(m,) of (n, D): the first of every set of equal rows."""
    seen: dict[bytes, int] = {}
    for index, row in enumerate(rows.contiguous().cpu()):
        seen.setdefault(row.view(torch.uint8).numpy().tobytes(), index)
    return torch.tensor(list(seen.values()), dtype=torch.long)


class Thinned(NamedTuple):
    """``rows`` (m,): those that stay; ``change``: the most by which any token's largest cosine can have sunk."""

    rows: Tensor
    change: float


def without_similar(rows: Tensor, cosine: float) -> Thinned:
    """Go through the rows in order and drop each whose cosine to one that stays is at least ``cosine``.

    For unit vectors v, p and a dropped p's nearest row c that stays, v.p - v.c <= |p - c|, whence ``change``.
    """
    units = unit_rows(rows.cpu()).double()
    kept: list[int] = []
    best = torch.full((len(units),), -1.0, dtype=torch.float64)
    for index, unit in enumerate(units):
        if best[index] >= cosine:
            continue
        kept.append(index)
        best = torch.maximum(best, units @ unit)
    change = (2 - 2 * best.clamp(-1, 1)).clamp_min(0).sqrt()
    change[kept] = 0
    return Thinned(torch.tensor(kept, dtype=torch.long), float(change.max()) if len(change) else 0.0)
