"""Switching pruning on and off, nesting, and records."""

from __future__ import annotations

import inspect
import json

import pytest
import torch

import mob
from mob.budget import Budget
from mob.methods import METHODS, create, parse
from mob.methods.base import SpanView, is_early
from mob.pruner import Stage
from mob.record import RetainedPatches
from tiny import (
    ONE,
    PATCHES,
    inputs,
    kept,
    llava,
    logits,
    pictures,
    traces,
)


@pytest.fixture
def model():
    return llava(torch.float32)


def in_picture_order(record):
    """Indices that the pictures, rows and columns of a record stand for."""
    cells = zip(record.image, record.row, record.column, strict=True)
    return [image * PATCHES + row * 4 + column for image, row, column in cells]


def test_nothing_remains_after_the_block(model):
    plain, before, settings = logits(model), traces(model), model.config.to_dict()
    with mob.prune(model, K=6):
        assert not torch.equal(logits(model), plain)
        assert traces(model) != before
    assert traces(model) == before and model.config.to_dict() == settings
    assert torch.equal(logits(model), plain)


def test_nothing_remains_after_an_exception(model):
    plain, before = logits(model), traces(model)
    with pytest.raises(KeyError), mob.prune(model, K=6):
        logits(model)
        raise KeyError
    assert traces(model) == before
    assert torch.equal(logits(model), plain)


@pytest.mark.parametrize("where", ["pixels", "layer"])
def test_nothing_remains_after_a_failing_forward(model, where):
    """Wrong pictures fail before the first layer, a broken layer after the selection; later passes are whole."""
    plain, before, layer = logits(model), traces(model), model.model.language_model.layers[3]
    with mob.prune(model, K=6) as pruning:
        pruned = logits(model)
        pruning.clear()
        if where == "pixels":
            with pytest.raises(ValueError, match="do not match"):
                logits(model, **inputs(ONE, pixels=pictures(2, torch.float32)))
        else:
            handle = layer.mlp.register_forward_pre_hook(lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                logits(model)
            handle.remove()
        assert torch.equal(logits(model), pruned)
        assert kept(pruning)[-3:] == [6, 6, 0]
    assert traces(model) == before
    assert torch.equal(logits(model), plain)


def test_a_pass_that_failed_before_the_selection_has_no_record(model):
    with mob.prune(model, K=6) as pruning:
        with pytest.raises(ValueError, match="do not match"):
            logits(model, **inputs(ONE, pixels=pictures(2, torch.float32)))
        assert pruning.records == []


def test_a_pruning_can_be_used_again_but_not_twice_at_once(model):
    pruning = mob.prune(model, K=6)
    with pruning:
        first = logits(model)
        with pytest.raises(ValueError, match="active already"):
            pruning.__enter__()
    with pruning:
        assert torch.equal(logits(model), first)


def test_attached_settings_are_read_at_each_call(model):
    plain = logits(model)
    with mob.prune(model, K=6):
        six = logits(model)
    with mob.prune(model, K=3, layer=1):
        three = logits(model)
    before = traces(model)
    pruning = mob.attach(model)
    assert model.config.MoB_config == {}
    assert torch.equal(logits(model), plain)
    model.config.MoB_config.update({"K": 6, "l_idx": 2})
    assert torch.equal(logits(model), six)
    model.config.MoB_config.update({"K": 3, "l_idx": 1})
    assert torch.equal(logits(model), three)
    for off in (None, {}):
        model.config.MoB_config = off
        assert torch.equal(logits(model), plain)
    model.config.MoB_config = {"K": 6}
    pruning.detach()
    assert torch.equal(logits(model), plain)
    assert traces(model) == before


def test_attaching_keeps_what_the_config_says(model):
    model.config.MoB_config = {"K": 6}
    pruning = mob.attach(model, record=True)
    logits(model)
    assert model.config.MoB_config == {"K": 6} and kept(pruning) == [6, 6, 0]


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"Kp_ration": 0.5}, "did you mean 'Kp_ratio'"),
        ({"K": 0}, "keep at least one"),
        ({"K": 6, "K_p": 7}, "K_p=7 with K=6"),
        ({"K": 6, "l_idx": 5}, "layers 1 to 4"),
        ({"K": 6, "method": "ramdom"}, "did you mean 'random'"),
    ],
)
def test_wrong_settings_are_errors_at_the_call(model, wrong, message):
    plain = logits(model)
    mob.attach(model)
    model.config.MoB_config.update(wrong)
    with pytest.raises(ValueError, match=message):
        logits(model)
    model.config.MoB_config = {}
    assert torch.equal(logits(model), plain)


# Nesting: of several prunings of one model the innermost acts


def test_prune_inside_prune(model):
    with mob.prune(model, K=4) as alone:
        four = logits(model)
    with mob.prune(model, K=9) as outer:
        nine = logits(model)
        with mob.prune(model, K=4) as inner:
            assert torch.equal(logits(model), four)
        assert torch.equal(logits(model), nine)
    assert kept(outer) == [9, 9, 0] * 2 and kept(inner) == [4, 4, 0]
    assert [r.keep_indices for r in inner.records] == [r.keep_indices for r in alone.records]


@pytest.mark.parametrize("record", [False, True])
def test_prune_inside_attach(model, record):
    model.config.MoB_config = {"K": 9}
    attached = mob.attach(model, record=record)
    nine = logits(model)
    with mob.prune(model, K=4) as inner:
        four = logits(model)
        assert inner.records[0].eta is not None
    assert torch.equal(logits(model), nine) and not torch.equal(four, nine)
    assert kept(inner) == [4, 4, 0]
    assert kept(attached) == ([9, 9, 0] * 2 if record else [])


def test_pruning_switched_off_inside_another(model):
    """K=None inside means unpruned, not the outer setting."""
    plain = logits(model)
    with mob.prune(model, K=4), mob.prune(model):
        assert torch.equal(logits(model), plain)


def test_a_pass_belongs_to_the_pruning_that_began_it(model):
    """Another thread may open a block at any moment; a pass under way must end as it began."""
    with mob.prune(model, K=6) as outer:
        six = logits(model)
        inner = mob.prune(model, K=4)

        def intrude(*_):
            inner.__enter__()

        handle = model.model.language_model.layers[0].register_forward_hook(intrude)
        during = logits(model)
        handle.remove()
        assert during.shape == six.shape and torch.equal(during, six)
        inner.detach()
        assert torch.equal(logits(model), six)
    assert kept(outer) == [6, 6, 0] * 3 and kept(inner) == []


# Records


def test_records_of_a_batch(model):
    with mob.prune(model, K=6, K_p=2, k=3, layer=3) as pruning:
        logits(model)
    one, two, none = pruning.records
    assert [(r.N, r.K) for r in (one, two, none)] == [(PATCHES, 6), (2 * PATCHES, 6), (0, 0)]
    assert none.keep_indices == [] and none.eta is None and none.milliseconds is None
    for record in (one, two):
        assert (record.K_p, record.k, record.layer, record.method) == (2, 3, 3, "mob")
        assert sum(record.prompt_center) == 2 and record.milliseconds > 0
        assert all(0 < radius <= 2 for radius in (record.eta, record.eps_p, record.eps_v))
        assert in_picture_order(record) == record.keep_indices
    assert {json.loads(r.to_json())["N"] for r in pruning.records} == {0, 16, 32}
    assert [RetainedPatches.from_json(r.to_json()) for r in pruning.records] == pruning.records


def test_records_can_be_cleared_or_left_out(model):
    with mob.prune(model, K=6) as pruning:
        logits(model)
        pruning.clear()
        assert pruning.records == []
        logits(model, **inputs(ONE))
        assert kept(pruning) == [6]
    with mob.prune(model, K=6, record=False) as silent:
        logits(model)
    assert silent.records == []


def test_decoding_adds_no_records(model):
    with mob.prune(model, K=6) as pruning:
        model.generate(**inputs(), max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert kept(pruning) == [6, 6, 0]


def test_decoding_reads_no_settings(model, monkeypatch):
    """What a step costs must not grow by what only the first pass needs."""
    read = []
    monkeypatch.setattr("mob.config.parse", lambda *given: read.append(given) or parse(*given))
    with mob.prune(model, K=6):
        model.generate(**inputs(), max_new_tokens=1, do_sample=False, pad_token_id=0)
        first = len(read)
        model.generate(**inputs(), max_new_tokens=6, do_sample=False, pad_token_id=0)
    assert first > 0 and len(read) <= 2 * first


class Twice(mob.Pruning):
    """A second stage at layer 4, that keeps three."""

    def _stages(self, settings, spans):
        (first,) = super()._stages(settings, spans)
        return first, Stage(4, first.rule, [Budget(N=b.K, K=min(b.K, 3), K_p=2, k=1) for b in first.budgets])


def test_records_of_two_stages_count_from_the_first(model):
    """The second stage chooses among what the first has left; a record speaks of the picture."""
    with mob.prune(model, K=6) as once:
        logits(model)
    with Twice(model, mob.MoBConfig(K=6), record=True) as twice:
        logits(model)
    assert [(r.N, r.K) for r in twice.records] == [(PATCHES, 3), (2 * PATCHES, 3), (0, 0)]
    for few, more in zip(twice.records, once.records, strict=True):
        assert set(few.keep_indices) <= set(more.keep_indices)
        assert few.keep_indices == in_picture_order(few)


# The codebook wants a file, and has tests of its own.
@pytest.mark.parametrize("method", sorted(set(METHODS) - {"codebook"}))
def test_every_rule_keeps_exactly_K(model, method):
    if is_early(create(method)) and "mm_encoder_outputs" not in inspect.signature(model.forward).parameters:
        pytest.skip("this transformers takes no encoded pictures")
    with mob.prune(model, K=7, method=method) as pruning:
        logits(model)
    for record, N in zip(pruning.records, (PATCHES, 2 * PATCHES), strict=False):
        assert len(set(record.keep_indices)) == 7 and record.method == method
        assert record.keep_indices == sorted(record.keep_indices) and set(record.keep_indices) <= set(range(N))
    expected = {"prompt": 7, "visual": 0, "random": 0}
    if method in expected:
        assert sum(pruning.records[0].prompt_center) == expected[method]


def test_random_choice_is_random():
    """Of 300 draws nearly all differ, every token comes equally often, and so does every pair of neighbours."""
    N, K, draws = 20, 5, 300
    view = SpanView(torch.zeros(1, N, 2), torch.zeros(1, 0, 2))
    chosen = [create("random", {"seed": seed}).select(view, Budget(N, K, 0, 1)).indices[0] for seed in range(draws)]
    assert len({tuple(one.tolist()) for one in chosen}) > 0.95 * draws
    counts = torch.stack(chosen).flatten().bincount(minlength=N)
    assert (counts - draws * K / N).abs().max() < 5 * (draws * K / N * (1 - K / N)) ** 0.5
    neighbours = sum(int((one.diff() == 1).sum()) for one in chosen) / draws
    assert neighbours == pytest.approx((N - 1) * K * (K - 1) / (N * (N - 1)), abs=0.2)


def test_a_share_depends_on_the_sample(model):
    with mob.prune(model, K=0.25, Kp_ratio=0.5) as pruning:
        logits(model)
    assert [(r.K, r.K_p) for r in pruning.records] == [(4, 2), (8, 4), (0, 0)]


def test_options_reach_the_rule(model):
    choices = []
    for seed in (0, 0, 1):
        with mob.prune(model, K=7, method="random", options={"seed": seed}) as pruning:
            logits(model, **inputs(ONE))
        choices.append(pruning.records[0].keep_indices)
    assert choices[0] == choices[1] != choices[2]
