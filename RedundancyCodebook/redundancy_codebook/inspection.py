"""``inspect``: what is in a codebook, in numbers that tell a good one from a bad one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mob.codebook_file import Codebook
from mob.covering import unit_rows
from redundancy_codebook.clustering import without_duplicates, without_similar

COSINES = (0.99, 0.95, 0.9, 0.8)


def describe(book: Codebook) -> dict[str, Any]:
    """Numbers of a codebook, JSON-ready.

    "coverage" leaves out each prototype's own picture: how similar is it to prototypes of others? That is the
    recurrence that a codebook stands for.
    """
    rows = book.prototypes.float()
    norms = rows.norm(dim=1)
    units = unit_rows(rows)
    cosine = units @ units.T
    apart = cosine[~torch.eye(len(rows), dtype=torch.bool)]
    out: dict[str, Any] = {
        "prototypes": len(rows),
        "D": book.D,
        "dtype": str(book.prototypes.dtype).removeprefix("torch."),
        "norm": _spread(norms),
        "pairwise_cosine": _spread(apart),
        "distinct_rows": len(without_duplicates(book.prototypes)),
        "left_after_dedup": {str(c): len(without_similar(rows, c).rows) for c in COSINES},
        "of_random_vectors": float(_random_cosine(units)),
    }
    if book.cluster_id is not None:
        out["clusters"] = _clusters(book, norms)
    if book.source_index is not None:
        source = book.source_index.long()
        out["pictures"] = len(source.unique())
        others = cosine.masked_fill(source[:, None] == source[None], -2).amax(1)
        others = others[others > -2]
        if len(others):
            out["coverage"] = _spread(others) | {"share_at_0.45": float((others >= 0.45).float().mean())}
    return out


def _clusters(book: Codebook, norms: Tensor) -> list[dict[str, Any]]:
    out = []
    for cluster in dict.fromkeys(book.cluster_id.tolist()):
        mine = book.cluster_id == cluster
        one = {"cluster": cluster, "prototypes": int(mine.sum()), "mean_norm": float(norms[mine].mean())}
        if book.source_index is not None:
            one["pictures"] = len(book.source_index[mine].unique())
        out.append(one)
    return out


def _spread(values: Tensor) -> dict[str, float]:
    if not len(values):
        return {}
    named = {"min": values.min(), "mean": values.mean(), "median": values.median(), "max": values.max()}
    return {name: float(value) for name, value in named.items()}


def _random_cosine(units: Tensor, draws: int = 200) -> Tensor:
    """Mean of the largest cosine of random directions: what theta must be well above."""
    noise = torch.randn(draws, units.shape[1], generator=torch.Generator().manual_seed(0))
    return (unit_rows(noise) @ units.T).amax(1).mean()


def render(numbers: dict[str, Any], metadata: dict[str, Any]) -> str:
    """As text for a terminal."""
    lines = [f"{numbers['prototypes']} prototypes of width {numbers['D']}, {numbers['dtype']}"]
    if metadata.get("model"):
        lines[0] += f", for {metadata['model']}"
    if not metadata.get("projector_sha256"):
        lines.append("not tied to a model's weights: nothing but the width can be checked")
    lines.append(f"norm              {_range(numbers['norm'])}")
    lines.append(f"pairwise cosine   {_range(numbers['pairwise_cosine'])}")
    if "coverage" in numbers:
        share = numbers["coverage"]["share_at_0.45"]
        lines.append(f"other pictures    {_range(numbers['coverage'])}; {share:.1%} at least 0.45")
    lines.append(f"random vectors    {numbers['of_random_vectors']:.3f} on average")
    left = ", ".join(f"{count} at {cosine}" for cosine, count in numbers["left_after_dedup"].items())
    lines.append(f"distinct rows     {numbers['distinct_rows']}; left after de-duplication by cosine: {left}")
    for one in numbers.get("clusters", ()):
        pictures = f", {one['pictures']} pictures" if "pictures" in one else ""
        lines.append(
            f"cluster {one['cluster']:<3}       {one['prototypes']} prototypes{pictures}, norm {one['mean_norm']:.1f}"
        )
    return "\n".join(lines)


def _range(numbers: dict[str, float]) -> str:
    return (
        "  ".join(f"{name} {numbers[name]:.3f}" for name in ("min", "mean", "median", "max") if name in numbers) or "-"
    )
