"""What rules may ask of the decoder equals what the model itself computes, in every family that can be asked."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

import mob
import zoo
from every_family import every
from mob.covering import Selection
from mob.stages import Stage


@dataclass
class Ask:
    """Keeps the first K, and remembers what it was told."""

    name = "ask"
    needs = ("attention", "own attention", "keys", "normed", "embeddings")
    told: list = field(default_factory=list)

    def select(self, view, budget):
        L = view.prompt.shape[1]
        even = torch.ones(view.prompt.shape[:2], dtype=view.visual.dtype)
        if view.prompt_mask is not None:
            even = even * view.prompt_mask
        weights = even / even.sum(1, keepdim=True).clamp_min(1)
        told = {
            "samples": view.probe.samples.tolist(),
            "places": view.probe.places,
            "last": view.probe.attention(),
            "mean": view.probe.attention(weights) if L else None,
            "own": view.probe.attention(own=True),
            "keys": view.probe.keys(),
            "normed": view.probe.normed(),
            "embeddings": view.probe.embeddings(),
            "mask": view.prompt_mask,
        }
        self.told.append(told)
        indices = torch.arange(budget.K).expand(len(view.visual), -1)
        return Selection(indices, torch.zeros_like(indices, dtype=torch.bool))


class Asking(mob.Pruning):
    """Prunes by a rule that is not registered."""

    rule = None

    def _stages(self, settings, spans):
        (stage,) = super()._stages(settings, spans)
        return (Stage(stage.layer, self.rule, stage.budgets, stage.metric, stage.parts),)


def ask(model, family, inputs, **more):
    pruning = Asking(model, mob.MoBConfig(K=9, l_idx=family.layer, per_picture=False), record=False)
    pruning.rule = Ask()
    with pruning, torch.no_grad():
        model(**inputs, **more)
    return pruning.rule.told


def maps(model, family, inputs):
    """Attention maps (B, H, T, T) of the layer before the stage and of the stage's layer, without any pruning."""
    layers, seen = model.get_decoder().layers, []
    hooks = [
        layers[i].self_attn.register_forward_hook(lambda module, args, out: seen.append(out[1]))
        for i in (family.layer - 1, family.layer)
    ]
    with torch.no_grad():
        model(**inputs)
    for hook in hooks:
        hook.remove()
    return seen


def rows_of(ids, sample):
    """Places of the visual tokens, and of the prompt, in a padded batch."""
    row = ids[sample]
    visual = ((row == zoo.IMAGE) | (row == zoo.VIDEO)).nonzero()[:, 0]
    after = torch.arange(len(row))
    return visual, after[after > visual[-1]]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@every
def test_rows_of_attention_are_those_of_the_map(family, attention):
    """A padded batch with unequal numbers of pictures; sdpa makes no map, and is asked for the same."""
    inputs = zoo.collate(family.samples(), torch.float32)
    before, here = maps(family.model(torch.float32, "eager"), family, inputs)
    told = ask(family.model(torch.float32, attention), family, inputs)
    assert told
    for one in told:
        for row, sample in enumerate(one["samples"]):
            visual, prompt = rows_of(inputs["input_ids"], sample)
            visual = one["places"][row]
            close(one["last"][row], before[sample][:, -1, visual])
            close(one["own"][row], here[sample][:, -1, visual])
            close(one["mean"][row], before[sample][:, prompt][:, :, visual].mean(1))


def close(got, expected):
    assert got.shape == expected.shape and expected.abs().sum() > 0
    torch.testing.assert_close(got, expected, rtol=2e-3, atol=2e-5)
