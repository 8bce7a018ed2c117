"""The losses of the embedded checkpoint, term by term against loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cosine_similarity

from llava.scenes.checkpoint import NUM_PATCHES
from llava.scenes.losses import ALIGN_TEMPERATURE, GROUND_TEMPERATURE, GROUP_WEIGHTS, SceneLosses, _grounding, untrained
from llava.scenes.packing import GROUPS, IGNORE, PREFIX, QUESTIONS, ScenePictures


@pytest.fixture(scope="module", params=["easy", "crowded"])
def batch(request):
    """With the model that it is for."""
    rows = [ScenePictures(2, 1, 0, split=request.param)[i] for i in range(2)]
    stacked = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    return stacked, SceneLosses(untrained(split=request.param)).double()


def lse(values):
    top = max(values)
    return top + math.log(sum(math.exp(value - top) for value in values))


def test_grounding(batch):
    """Of all (word, patch) pairs of a question, those with patches that it refers to should have the mass."""
    batch, _ = batch
    text = batch["ids"].shape[1]
    hidden = torch.randn(2, PREFIX + text, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    losses = []
    for row in range(2):
        visual = hidden[row, PREFIX - NUM_PATCHES : PREFIX]
        for question in range(QUESTIONS):
            words = [
                PREFIX + at for at in range(text) if batch["segment"][row, at] == question and batch["prompt"][row, at]
            ]
            refers = batch["refers"][row, question]
            if not words or not refers.any():
                continue
            near = torch.stack([cosine_similarity(hidden[row, at][None], visual) for at in words]) / GROUND_TEMPERATURE
            losses.append(lse(near.flatten().tolist()) - lse(near[:, refers].flatten().tolist()))
    assert len(losses) > 4 and min(losses) > 0
    assert float(_grounding(hidden, batch)) == pytest.approx(sum(losses) / len(losses), rel=1e-6)


def test_alignment(batch):
    """Each patch names its words, groups weighed; and whether an object's centre lies in it."""
    batch, losses = batch
    table = losses.model.get_input_embeddings().weight
    patches = torch.randn(2, NUM_PATCHES, table.shape[1], generator=torch.Generator().manual_seed(1)).double()
    total = 0.0
    for group, weight in GROUP_WEIGHTS.items():
        words, each = table[getattr(losses, f"words_{group}")], []
        assert len(words) == len(GROUPS[group])
        for row in range(2):
            for place in range(NUM_PATCHES):
                label = int(batch[f"patch_{group}"][row, place])
                if label != IGNORE:
                    near = (cosine_similarity(patches[row, place][None], words) / ALIGN_TEMPERATURE).tolist()
                    each.append(lse(near) - near[label])
        total += weight * sum(each) / len(each)
    centre = torch.sigmoid(losses.model.centre(patches)[..., 0]).flatten().tolist()
    there = batch["centres"].flatten().tolist()
    total += sum(-math.log(p if y else 1 - p) for p, y in zip(centre, there, strict=True)) / len(there)
    expected = total / (1 + sum(GROUP_WEIGHTS.values()))
    given = {name: value.double() if value.is_floating_point() else value for name, value in batch.items()}
    assert float(losses._align(patches, given).detach()) == pytest.approx(expected, rel=1e-6)
