"""Flash attention with a stand-in for the kernel: 2D masks, rows unpadded before it runs."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AttentionInterface,
)
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

import mob
from tiny import (
    IMAGE,
    LONG_TEXT,
    ONE,
    PATCHES,
    SAMPLES,
    batch,
    inputs,
    llava,
    logits,
    picture_count,
    pictures,
    prompt,
)


def flash_standin(module, query, key, value, attention_mask, scaling=None, position_ids=None, **_):
    """What transformers does around the kernels: padding is cut off, what is left is causal from its end.

    A single unpadded row whose positions have gaps would be read as several packed sequences.
    """
    rows, heads, new, _ = query.shape
    length = key.shape[2]
    key, value = (part.repeat_interleave(heads // part.shape[1], 1) for part in (key, value))
    if attention_mask is None:
        if rows == 1 and position_ids is not None and new > 1:
            assert (position_ids.diff() == 1).all(), "gaps in the positions"
        attention_mask = torch.ones(rows, length, dtype=torch.bool)
    assert attention_mask.shape == (rows, length)
    out = torch.zeros_like(query)
    for row, real in enumerate(attention_mask.bool()):
        asking = torch.tensor([0]) if new == 1 else real[-new:].nonzero()[:, 0]
        k, v = key[row][:, real], value[row][:, real]
        allowed = torch.ones(len(asking), k.shape[1], dtype=torch.bool).tril(k.shape[1] - len(asking))
        scores = query[row][:, asking] @ k.transpose(1, 2) * scaling
        out[row][:, asking] = scores.masked_fill(~allowed, float("-inf")).softmax(-1) @ v
    return out.transpose(1, 2).contiguous(), None


@pytest.fixture
def flash():
    """The decoder, not the vision tower, runs the stand-in."""
    AttentionInterface.register("flash_standin", flash_standin)
    AttentionMaskInterface.register("flash_standin", ALL_MASK_ATTENTION_FUNCTIONS["flash_attention_2"])
    model = llava()
    model.model.language_model.config._attn_implementation = "flash_standin"
    return model


@pytest.mark.parametrize(
    "samples", [(ONE,), SAMPLES, (ONE, ONE), (ONE, LONG_TEXT)], ids=["one", "mixed", "same", "as-long"]
)
@pytest.mark.parametrize("pad", ["left", "right"])
def test_flash_attention_gives_the_logits_of_sdpa(flash, samples, pad):
    """Without padding flash gets no mask, and needs one where the samples become unequal."""
    given = {
        **inputs(*samples, pixels=pictures(sum(s.count(IMAGE) for s in samples) // PATCHES)),
        **batch(*samples, pad=pad),
    }
    real = given["attention_mask"].bool()
    expected, answers = [], []
    for model in (llava(), flash):
        with mob.prune(model, K=6) as pruning:
            expected.append(logits(model, **given)[real])
        answers.append([record.keep_indices for record in pruning.records])
    assert torch.allclose(*expected, atol=1e-9)
    assert answers[0] == answers[1]


@pytest.mark.parametrize("samples", [(ONE,), SAMPLES, (ONE, LONG_TEXT)], ids=["one", "mixed", "as-long"])
def test_flash_attention_generates_what_sdpa_generates(flash, samples):
    given = inputs(*samples, pixels=pictures(picture_count(samples)))
    answers = []
    for model in (llava(), flash):
        with mob.prune(model, K=6):
            answers.append(model.generate(**given, max_new_tokens=5, do_sample=False, pad_token_id=0))
    assert torch.equal(*answers)


def test_flash_attention_in_a_second_turn(flash):
    turn = {"input_ids": torch.tensor([prompt(42, "image", 43, 44)]), "pixel_values": pictures(2)[1:]}
    last = []
    for model in (llava(), flash):
        with mob.prune(model, K=6), torch.no_grad():
            cache = model(**inputs(ONE, pixels=pictures(2)[:1]), use_cache=True).past_key_values
            last.append(model(**turn, past_key_values=cache).logits)
    assert torch.allclose(*last, atol=1e-9)


@pytest.mark.parametrize("method", ["fastv", "dart", "sparsevlm", "sparsevlm2", "pyramiddrop"])
@pytest.mark.parametrize("pad", ["left", "right"])
def test_rules_that_look_at_attention(flash, method, pad):
    """Their rows are read beside the kernel, by its 2D mask; several stages give it several lengths."""
    given = {**inputs(*SAMPLES, pixels=pictures(3)), **batch(*SAMPLES, pad=pad)}
    real = given["attention_mask"].bool()
    given["position_ids"] = (given["attention_mask"].cumsum(1) - 1).clamp_min(0)
    turn = {"input_ids": torch.tensor([prompt(42, "image", 43, 44)]), "pixel_values": pictures(2)[1:]}
    expected, answers = [], []
    for model in (llava(), flash):
        with mob.prune(model, K=6, method=method) as pruning, torch.no_grad():
            first = logits(model, **given)[real]
            cache = model(**inputs(ONE, pixels=pictures(2)[:1]), use_cache=True).past_key_values
            expected.append(torch.cat([first, model(**turn, past_key_values=cache).logits[0]]))
        answers.append([record.keep_indices for record in pruning.records])
    assert torch.allclose(*expected, atol=1e-9)
    assert answers[0] == answers[1] and [len(kept) for kept in answers[0]] == [6, 6, 0, 6, 6]
