"""``torch.compile`` of decoding under pruning: one graph, no breaks, and the tokens of the uncompiled model."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import CompileConfig

import mob
from tiny import NONE, ONE, TWO, batch, llava, pictures

NEW = 5


def decode(model, samples, backend=None):
    """New tokens of ``generate`` with a static cache, whose decoding is compiled as a whole or not at all."""
    options = {"disable_compile": True}
    if backend is not None:
        config = CompileConfig(backend=backend, mode=None, fullgraph=True)
        config._compile_all_devices = True  # without it, only on accelerators
        options = {"compile_config": config}
    pixels = pictures(sum((ONE, TWO).index(one) + 1 for one in samples if one is not NONE))
    inputs = batch(*samples)
    out = model.generate(
        **inputs,
        pixel_values=pixels,
        max_new_tokens=NEW,
        do_sample=False,
        pad_token_id=0,
        cache_implementation="static",
        **options,
    )
    return out[:, inputs["input_ids"].shape[1] :].tolist()


@pytest.fixture
def fresh():
    """No compiled code and no counts of other tests."""
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()
    counters.clear()


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("samples", [(ONE,), (ONE, TWO, NONE)], ids=["alone", "padded"])
def test_decoding_is_one_graph(samples, backend, fresh):
    model = llava()
    model.config.MoB_config = {"K": 6, "l_idx": 2}
    mob.attach(model)
    expected = decode(model, samples)
    assert not counters["stats"]
    assert decode(model, samples, backend) == expected
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]
    assert decode(model, samples, backend) == expected  # another cache, other tokens in it
    assert counters["stats"]["unique_graphs"] == 1


def test_pruning_can_be_switched_between_calls(fresh):
    model = llava()
    model.config.MoB_config = {"K": 6, "l_idx": 2}
    pruning = mob.attach(model)
    pruned = decode(model, (TWO,), "eager")
    model.config.MoB_config = {}
    whole = decode(model, (TWO,), "eager")
    pruning.detach()
    assert whole == decode(model, (TWO,)) and whole != pruned
