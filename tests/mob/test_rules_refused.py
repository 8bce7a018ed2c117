"""What rules that look into layers cannot ask, and options that no rule can work with: both are said."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

import mob
import zoo
from mob.methods import create
from zoo import FAMILIES

K = 7


def test_a_cache_that_cannot_be_read_goes_on_only_without_a_past():
    """A first turn needs nothing from it; a second would ask for keys that it does not give."""
    one = FAMILIES["llava"]
    model, sample = one.model(), zoo.one(one.samples()[0])
    del sample["attention_mask"]
    with mob.prune(model, K=K, method="fastv") as pruning, torch.no_grad():
        model(**sample)
        cache = DynamicCache()
        cache.layers = [Packed() for _ in range(5)]
        model(**sample, past_key_values=cache)
        first, again = (record.keep_indices for record in pruning.records)
        assert first == again
        with pytest.raises(ValueError, match="cannot go on from a DynamicCache: use the default cache"):
            model(**sample, past_key_values=cache)


class Packed(DynamicLayer):
    """Holds keys where nobody finds them, as quantised caches do."""

    held = None

    def update(self, keys, values, *rest, **more):
        new = (keys, values)
        self.held = new if self.held is None else tuple(torch.cat(both, 2) for both in zip(self.held, new, strict=True))
        return self.held

    def get_seq_length(self):
        return 0 if self.held is None else self.held[0].shape[2]


def test_models_that_cannot_be_asked_are_refused_by_name():
    model = FAMILIES["llava"].model()
    for layer in model.get_decoder().layers:
        layer.attention = layer._modules.pop("self_attn")
    for rule in ("fastv", "dart", "sparsevlm", "pyramiddrop"):
        with pytest.raises(ValueError, match=f"method='{rule}' asks for attention, .* such as method='mob'"):
            mob.prune(model, K=K, method=rule)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"positions": "reindex"}, "positions='reindex' works after rules before the decoder only"),
        ({"method": "pyramiddrop", "positions": "reindex"}, "positions='reindex' works after rules before the decoder"),
        (
            {"method": "pooling+scope", "options": {"pooling": {"K": 0.5}}},
            "scope looks at .* and pooling before it merges tokens: put it first",
        ),
        (
            {"method": "visionzip+scope", "options": {"visionzip": {"K": 0.5}}},
            "scope looks at .* and visionzip before it merges",
        ),
    ],
)
def test_what_would_not_do_what_it_says_is_refused(settings, said):
    with pytest.raises(ValueError, match=said), mob.prune(FAMILIES["llava"].model(), K=K, **settings):
        pass


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("visionzip", {"contextual": -1}, "contextual=-1"),
        ("visionzip", {"contextual": 1.5}, "contextual=1.5"),
        ("visionzip", {"contextual": True}, "contextual=True"),
        ("visionzip", {"contextual": float("nan")}, "contextual=nan"),
        ("visionzip", {"contextual": "10"}, "contextual='10'"),
        ("visionzip", {"order": "raw"}, "raster, published"),
        ("visionzip", {"cls": 1}, "cls=1"),
        ("scope", {"alpha": -1}, "alpha=-1"),
        ("scope", {"alpha": 100}, "alpha=100: give a number from 0 to 10"),
        ("scope", {"alpha": float("inf")}, "alpha=inf"),
        ("scope", {"alpha": "1"}, "alpha='1'"),
        ("cdpruner", {"theta": 1}, "theta=1: give a number from 0 to below 1"),
        ("cdpruner", {"theta": "a"}, "theta='a'"),
        ("cdpruner", {"theta": True}, "theta=True"),
        ("cdpruner", {"theta": float("nan")}, "theta=nan"),
        ("cdpruner", {"negative": "no"}, "negative='no'"),
        ("mmtok", {"tau_text": 0}, "tau_text=0: give a number from 0.001 to 1000"),
        ("mmtok", {"tau_text": 1e-40}, "tau_text=1e-40"),
        ("mmtok", {"tau_visual": float("inf")}, "tau_visual=inf"),
        ("mmtok", {"tau_visual": 1e9}, "tau_visual=1000000000.0"),
        ("mmtok", {"alpha": float("inf")}, "alpha=inf"),
        ("mmtok", {"alpha": float("nan")}, "alpha=nan"),
        ("mmtok", {"alpha": 10**400}, "from 0 to 1e"),
        ("codebook", {"path": 3}, "path=3"),
        ("pyramiddrop", {"layers": [False, 3]}, "ascending layers"),
        ("sparsevlm", {"layers": [0, 3, 5]}, "ascending layers"),
        ("sparsevlm2", {"layers": [2.0, 3, 5]}, "ascending layers"),
        ("given", {"indices": 3}, "indices=3: give a list of integers"),
        ("given", {"indices": [0, 1.5]}, "give a list of integers"),
        ("mmtok", {"alpha": -0.5}, "alpha=-0.5"),
        ("pooling", {"size": 3}, "no option 'size'"),
    ],
)
def test_options_out_of_bounds(name, options, message):
    with pytest.raises(ValueError, match=message):
        create(name, options)
