"""Costs equal the paper's table, the textbook formula, what PyTorch counts and what a cache really holds."""

from __future__ import annotations

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig

import mob
from mob.cost import Decoder, cost, paper_forward_flops, paper_selection_flops
from tiny import ONE, PATCHES, llava, pictures

LLAMA_7B = LlamaConfig(
    hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, vocab_size=32000
)


@pytest.mark.parametrize(
    "tokens, tera",
    [(576, 8.2), (64, 1.0), (128, 1.9), (192, 2.8), (2880, 40.5), (320, 4.6), (640, 9.1), (960, 13.6)],
)
def test_forward_rows_of_table_7(tokens, tera):
    """The printed digits round, and they count a model of 7.0e9 parameters instead of 6.7e9."""
    rounding = 0.05 / tera
    assert paper_forward_flops(LLAMA_7B, tokens) / 1e12 == pytest.approx(tera, rel=max(0.05, rounding))


@pytest.mark.parametrize(
    "N, K, tera",
    [
        (576, 64, 0.00017),
        (576, 128, 0.00033),
        (576, 192, 0.00048),
        (2880, 320, 0.0039),
        (2880, 640, 0.0076),
        (2880, 960, 0.011),
    ],
)
def test_selection_rows_of_table_7(N, K, tera):
    assert paper_selection_flops(N, K) / 1e12 == pytest.approx(tera, rel=0.07)


def test_parameters_of_a_7b_decoder():
    assert Decoder.of(LLAMA_7B).parameters() == pytest.approx(6.74e9, rel=0.001)


def test_mean_tokens_count_the_layers_that_see_everything():
    assert cost(LLAMA_7B, 576, 64).mean_tokens == 96
    assert cost(LLAMA_7B, 576, 64, layer=16).mean_tokens == 320


def test_layer_formula_without_grouped_heads():
    d, m = 4096, 11008
    for n in (1, 74, 586):
        assert Decoder.of(LLAMA_7B).layer_macs(n) == 4 * n * d**2 + 2 * n**2 * d + 3 * n * d * m


def test_keeping_everything_costs_everything():
    whole = cost(LLAMA_7B, 576, 576, text=40)
    assert (whole.macs_share, whole.kv_share, whole.mean_tokens) == (1, 1, 576)
    assert whole.macs == 32 * Decoder.of(LLAMA_7B).layer_macs(616)


def test_shares_are_of_the_unpruned_prefill():
    pruned, whole = cost(LLAMA_7B, 576, 64, text=40), cost(LLAMA_7B, 576, 576, text=40)
    assert pruned.macs_share == pytest.approx(pruned.macs / whole.macs)
    assert pruned.kv_share == pytest.approx(pruned.kv_bytes / whole.kv_bytes)
    assert pruned.kv_share == pytest.approx((96 + 40) / (576 + 40))


def test_costs_are_ready_for_json():
    values = cost(LLAMA_7B, 576, 64).to_dict()
    assert json.loads(json.dumps(values)) == values


@pytest.mark.parametrize("layer, K", [(1, 6), (2, 6), (4, 3), (2, PATCHES)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cache_bytes_are_those_of_a_pruned_cache(dtype, layer, K):
    model = llava(dtype)
    with mob.prune(model, K=K, layer=layer):
        cache = model(input_ids=torch.tensor([ONE]), pixel_values=pictures(1, dtype), use_cache=True).past_key_values
    held = sum(part.numel() * part.element_size() for entry in cache.layers for part in (entry.keys, entry.values))
    text = len(ONE) - PATCHES
    assert cost(model.config, PATCHES, K, layer=layer, text=text, bytes_per_number=dtype.itemsize).kv_bytes == held


@pytest.mark.parametrize("layer, K", [(1, 6), (4, 3), (2, PATCHES)])
def test_macs_are_what_pytorch_counts(layer, K):
    """Eager attention multiplies the full square. A random choice, without records, adds no products of its own."""
    model = llava(torch.float32, "eager")
    counter = FlopCounterMode(display=False)
    with mob.prune(model, K=K, layer=layer, method="random", record=False), counter, torch.no_grad():
        model(input_ids=torch.tensor([ONE]), pixel_values=pictures(1, torch.float32))
    counts = counter.get_flop_counts()
    layers = [name for name in counts if "language_model.layers." in name and name.rsplit(".", 1)[1].isdigit()]
    assert len(layers) == 5
    flops = sum(sum(counts[name].values()) for name in layers)
    assert flops == 2 * cost(model.config, PATCHES, K, layer=layer, text=len(ONE) - PATCHES).macs


def test_the_text_decoder_is_found():
    model = llava()
    assert Decoder.of(model.config) == Decoder.of(model.config.text_config) == Decoder(5, 48, 96, 4, 2, 12, 64)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"K": 577}, "K=577 of N=576"),
        ({"K": -1}, "K=-1"),
        ({"layer": 0}, "layers 1 to 31"),
        ({"layer": 32}, "layers 1 to 31"),
    ],
)
def test_errors_say_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        cost(LLAMA_7B, **{"N": 576, "K": 64, **arguments})
