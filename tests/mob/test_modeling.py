"""Threads, copies and saved models."""

from __future__ import annotations

import copy
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import transformers

import mob
from tiny import (
    NONE,
    ONE,
    TWO,
    inputs,
    kept,
    llava,
    logits,
)


@pytest.fixture
def model():
    return llava(torch.float32)


def test_two_threads_get_the_answers_of_one(model):
    """Different batches, many at once: neither plans nor records meet."""
    jobs = [inputs(ONE), inputs(TWO, NONE), inputs(), inputs(NONE)] * 4
    expected = [[6], [6, 0], [6, 6, 0], [0]]

    def answer(given):
        return model.generate(**given, max_new_tokens=4, do_sample=False, pad_token_id=0).tolist()

    with mob.prune(model, K=6) as pruning:
        alone = [answer(job) for job in jobs]
        records = pruning.records.copy()
        pruning.clear()
        with ThreadPoolExecutor(2) as pool:
            together = list(pool.map(answer, jobs))
        assert together == alone

        def key(record):
            return record.N, record.keep_indices

        assert sorted(map(key, pruning.records)) == sorted(map(key, records))
    assert len(records) == 4 * sum(map(len, expected))


def test_a_copy_of_an_attached_model_is_independent(model):
    plain = logits(model)
    model.config.MoB_config = {"K": 6}
    pruning = mob.attach(model, record=True)
    six = logits(model)
    other = copy.deepcopy(model)
    assert torch.equal(logits(other), six)
    assert len(pruning.records) == 3
    other.config.MoB_config = {}
    assert torch.equal(logits(other), plain) and torch.equal(logits(model), six)
    pruning.detach()
    other.config.MoB_config = {"K": 6}
    assert torch.equal(logits(model), plain) and torch.equal(logits(other), six)


def thin_class():
    class LlavaForConditionalGeneration(mob.MoBMixin, transformers.LlavaForConditionalGeneration):
        pass

    return LlavaForConditionalGeneration


def load(cls, folder, **more):
    loaded, info = cls.from_pretrained(folder, output_loading_info=True, **more)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return loaded.eval()


def test_a_saved_model_keeps_its_settings(model, tmp_path):
    plain = logits(model)
    with mob.prune(model, K=6):
        six = logits(model)
    model.save_pretrained(tmp_path / "stock")
    thin = load(thin_class(), tmp_path / "stock", MoB_config={"K": 6})
    assert torch.equal(logits(thin), six)
    thin.save_pretrained(tmp_path / "thin")
    saved = json.loads((tmp_path / "thin" / "config.json").read_text())
    assert saved["MoB_config"] == {"K": 6} and saved["architectures"] == ["LlavaForConditionalGeneration"]
    again = load(thin_class(), tmp_path / "thin")
    assert again.config.MoB_config == {"K": 6} and torch.equal(logits(again), six)
    off = load(thin_class(), tmp_path / "thin", MoB_config={})
    assert torch.equal(logits(off), plain)
    stock = load(transformers.LlavaForConditionalGeneration, tmp_path / "thin")
    assert torch.equal(logits(stock), plain)


def test_a_thin_model_prunes_and_records(model, tmp_path):
    model.save_pretrained(tmp_path)
    thin = thin_class().from_pretrained(tmp_path).eval()
    assert thin.config.MoB_config == {} and torch.equal(logits(thin), logits(model))
    thin.pruning.record = True
    thin.config.MoB_config["K"] = 6
    logits(thin)
    assert kept(thin.pruning) == [6, 6, 0]


def test_wrong_settings_fail_before_anything_is_loaded():
    with pytest.raises(ValueError, match="did you mean 'Kp_ratio'"):
        thin_class().from_pretrained("no/such/model", MoB_config={"Kp_ratios": 0.5})


def test_the_mixin_needs_a_stock_class():
    with pytest.raises(TypeError, match="after MoBMixin"):
        type("Lonely", (mob.MoBMixin,), {})
