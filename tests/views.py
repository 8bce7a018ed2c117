"""What a rule may be shown, made up, so that a test can change one part of it and no other."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from mob.budget import Budget
from mob.codebook_file import Codebook
from mob.methods import SpanView, TowerView, create

PARTS = ("visual", "prompt", "tower", "cells", "attention", "own attention", "keys", "normed", "embeddings")
LENGTHS = (4, 2, 1)  # prompt tokens of the three samples
HEIGHT, WIDTH, D, DV, HEADS = 8, 10, 12, 10, 4
N = HEIGHT * WIDTH


class Probe:
    """Answers of layers that never ran. Of an attention map, one row for each prompt token."""

    def __init__(self, noise, words):
        self.maps = [words(part, HEADS, N).softmax(-1) for part in ("attention", "own attention")]
        self.rows = {part: (noise(part, N, D), words(part, D)) for part in ("keys", "normed", "embeddings")}

    def attention(self, weights=None, own=False, unbiased=False):
        maps = self.maps[own]
        return maps[:, 0] if weights is None else (weights[..., None, None] * maps).sum(1)

    def keys(self):
        return self.rows["keys"]

    def normed(self):
        return self.rows["normed"]

    def embeddings(self):
        visual, prompt = self.rows["embeddings"]
        return visual, torch.ones_like(visual[..., 0], dtype=torch.bool), prompt


def view_of(rows=(0, 1, 2), other="", seed=1, device="cpu") -> SpanView:
    """Some of three samples, alone without padding; the part named ``other`` has other values than usual."""

    def noise(part, *shape, number=0):
        generator = torch.Generator().manual_seed(10 * PARTS.index(part) + number + 1000 * seed * (part == other))
        return torch.randn(len(LENGTHS), *shape, generator=generator, dtype=torch.float64)[list(rows)].to(device)

    def words(part, *shape):
        return noise(part, LENGTHS[0], *shape, number=9)[:, : max(LENGTHS[row] for row in rows)]

    lengths = torch.tensor([LENGTHS[row] for row in rows])
    mask = (torch.arange(LENGTHS[0]) < lengths[:, None]).to(device) if len(rows) > 1 else None
    scores, keys = noise("tower", N).softmax(-1), noise("tower", N, DV, number=1)
    hidden, cls = noise("tower", N, DV, number=2), noise("tower", DV, number=3)
    placed = torch.ones_like(scores, dtype=torch.bool)
    tower = TowerView(scores, keys, hidden, placed, cls, lambda states: pad(states, (0, D - DV)))
    columns = HEIGHT if other == "cells" else WIDTH
    cells = [[(0, 0, i // columns, i % columns) for i in range(N)]] * len(rows)
    return SpanView(noise("visual", N, D), words("prompt", D), mask, "cosine", tower, cells, Probe(noise, words))


def rule_of(name, folder, **options):
    """A rule; ``folder`` is for the codebook of the one that wants a file."""
    if name == "codebook":
        path = folder / "codebook.safetensors"
        Codebook(torch.randn(7, D, generator=torch.Generator().manual_seed(5))).save(path)
        options = {"path": str(path), "policy": "count", **options}
    return create(name, options)


def answer(rule, view) -> list[Tensor]:
    """Everything that it says, whichever way it says it."""
    budget = Budget(N, 20, 8, 2)
    said = [rule.keep(view, budget)] if hasattr(rule, "keep") else rule.select(view, budget)
    return [part for part in said if isinstance(part, Tensor)]
