"""Rules within the decoder equal slow versions that look at full attention maps (``tests/rules_reference.py``)."""

from __future__ import annotations

import functools
import inspect

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import mob
import rules_reference as slow
import zoo
from mob.methods import create
from mob.methods.base import Depth
from mob.stages import schedule
from tiny import batch
from zoo import FAMILIES

K, NEW = 7, 3
FEW = ("llava", "llava_next", "qwen2_vl", "qwen3_vl", "kimi_k25")
RULES = {
    "fastv": ({}, slow.fastv),
    "dart": ({}, slow.dart),
    "sparsevlm": ({}, slow.sparsevlm),
    "sparsevlm-plain": ({"recycle": False}, slow.sparsevlm_plain),
    "sparsevlm2": ({}, slow.sparsevlm2),
    "pyramiddrop": ({}, slow.pyramiddrop),
}
each_family = pytest.mark.parametrize("family", FEW)
each_rule = pytest.mark.parametrize("rule", RULES)


def settings(rule, **more):
    return {"K": K, "method": rule.split("-")[0], "options": RULES[rule][0], **more}


def plan_of(rule, family):
    one, layers = (
        create(rule.split("-")[0], RULES[rule][0]),
        FAMILIES[family].make().config.get_text_config().num_hidden_layers,
    )
    first = 3 if family == "qwen3_vl" else 1
    return lambda N: schedule(one, N, K, Depth(layers, first)) if N > K else []


def reference(family, rule, **more):
    return slow.SlowRules(FAMILIES[family].model(attention="eager"), RULES[rule][1], plan_of(rule, family), **more)


@functools.cache
def expected(family, rule):
    out = []
    for sample in FAMILIES[family].samples():
        one = reference(family, rule)
        answers, logits = one.generate([(zoo.one(sample), zoo.lengths(sample), NEW)])
        out.append((answers[0], logits[0], one.kept[0]))
    return out


def generate(model, inputs, **more):
    options = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, **more}
    out = model.generate(**inputs, return_dict_in_generate=True, output_logits=True, **options)
    return out.sequences[:, inputs["input_ids"].shape[1] :].tolist(), torch.stack(out.logits, 1), out


@each_rule
@each_family
def test_generate_equals_the_reference(family, rule):
    """A batch of three with unequal numbers of visual tokens, padded on the left, several cuts in one pass."""
    one = FAMILIES[family]
    model = one.model()
    with mob.prune(model, **settings(rule)) as pruning:
        answers, logits, _ = generate(model, zoo.collate(one.samples()))
    for row, (ids, exact, kept) in enumerate(expected(family, rule)):
        assert pruning.records[row].keep_indices == kept
        assert answers[row] == ids
        assert (logits[row] - exact.float()).abs().max() <= 1e-5 * max(1.0, exact.abs().max())
    assert [record.K for record in pruning.records] == [K, K, 0]


@each_rule
@pytest.mark.parametrize("family", FEW[:3])
def test_one_budget_over_all_pictures(family, rule):
    one = FAMILIES[family]
    sample, model = one.samples()[1], one.model()
    with mob.prune(model, **settings(rule, per_picture=False)) as pruning:
        answers, logits, _ = generate(model, zoo.one(sample))
    exact = reference(family, rule, per_picture=False)
    ids, slow_logits = exact.generate([(zoo.one(sample), zoo.lengths(sample), NEW)])
    assert pruning.records[0].keep_indices == exact.kept[0] and answers == ids
    assert (logits[0] - slow_logits[0].float()).abs().max() < 1e-5


@each_rule
@pytest.mark.parametrize("family", FEW[:2])
def test_a_second_turn_with_a_new_picture(family, rule):
    """What asks in the second turn sees what is left of the first, in each layer."""
    one = FAMILIES[family]
    model = one.model()
    first, second = [1, 20, one.picture(0), 30, 31], [40, one.picture(1), 41, 42]
    turns = [(zoo.one(part), zoo.lengths(part), NEW) for part in (first, second)]
    exact = reference(family, rule)
    ids, slow_logits = exact.generate(turns)
    with mob.prune(model, **settings(rule)) as pruning:
        answers, _, out = generate(model, turns[0][0])
        whole = torch.cat([out.sequences, turns[1][0]["input_ids"]], 1)
        cache, media = out.past_key_values, {k: v for k, v in turns[1][0].items() if k not in ("input_ids",)}
        more = media | {"input_ids": whole, "attention_mask": torch.ones_like(whole)}
        later = model.generate(
            **more, past_key_values=cache, max_new_tokens=NEW, do_sample=False, pad_token_id=0, output_logits=True,
            return_dict_in_generate=True,
        )  # fmt: skip
    assert [answers[0], later.sequences[0, whole.shape[1] :].tolist()] == ids
    assert (torch.cat(later.logits) - slow_logits[1].float()).abs().max() < 1e-5
    assert [record.keep_indices for record in pruning.records] == exact.kept


@each_rule
@pytest.mark.parametrize("family", ("llava", "qwen2_vl", "qwen3_vl"))
def test_batched_padded_and_alone_are_the_same(family, rule):
    """Also on the right, without a cache, with a static one, and by eager attention."""
    one = FAMILIES[family]
    model, samples = one.model(), one.samples()
    kept = {}
    with mob.prune(model, **settings(rule)) as pruning, torch.no_grad():
        for how, inputs in {"batch": zoo.collate(samples), "cached": zoo.collate(samples)}.items():
            model(**inputs, **positions(model, inputs), use_cache=how == "cached")
            kept[how] = take(pruning)
        kept["alone"] = []
        for sample in samples:
            model(**zoo.one(sample))
            kept["alone"] += take(pruning)
        model.generate(
            **zoo.collate(samples), max_new_tokens=2, do_sample=False, pad_token_id=0, cache_implementation="static"
        )
        kept["static"] = take(pruning)
    eager = one.model(torch.float32, "eager")
    with mob.prune(eager, **settings(rule)) as pruning, torch.no_grad():
        inputs = zoo.collate(samples, torch.float32)
        eager(**inputs, **positions(eager, inputs))
        kept["eager"] = take(pruning)
    assert all(choice == kept["alone"] for choice in kept.values()), kept
    assert [len(choice) for choice in kept["alone"]] == [K, K, 0]


def positions(model, inputs):
    """As generate counts them: keys, and so DART's pivots, depend on positions, and forward counts padding too."""
    if hasattr(model.model, "get_rope_index"):
        return {}
    return {"position_ids": (inputs["attention_mask"].cumsum(1) - 1).clamp_min(0)}


def take(pruning):
    out = [record.keep_indices for record in pruning.records]
    pruning.clear()
    return out


@each_rule
def test_padding_on_the_right(rule):
    one = FAMILIES["llava"]
    model, samples = one.model(), one.samples()
    left = zoo.collate(samples)
    rows = [row[mask.bool()].tolist() for row, mask in zip(left["input_ids"], left["attention_mask"], strict=True)]
    with mob.prune(model, **settings(rule)) as pruning, torch.no_grad():
        model(**left, **positions(model, left))
        expected = take(pruning)
        model(**batch(*rows, pad="right"), pixel_values=left["pixel_values"])
        assert take(pruning) == expected


@each_rule
@each_family
def test_keeping_everything_is_bit_identical(family, rule):
    one = FAMILIES[family]
    model, inputs = one.model(torch.float32), zoo.collate(one.samples(), torch.float32)
    plain, logits, _ = generate(model, inputs)
    with mob.prune(model, **settings(rule, K=10_000)):
        same, same_logits, _ = generate(model, inputs)
    assert same == plain and torch.equal(logits, same_logits)


@each_rule
def test_constant_pictures_keep_exactly_K_twice_the_same(rule):
    """Equal tokens differ by their positions alone."""
    model, inputs = FAMILIES["llava"].model(torch.float32), zoo.collate(FAMILIES["llava"].samples(), torch.float32)
    inputs["pixel_values"] = torch.zeros_like(inputs["pixel_values"])
    with mob.prune(model, **settings(rule)) as pruning, torch.no_grad():
        model(**inputs)
        first = take(pruning)
        model(**inputs)
        assert take(pruning) == first and [len(set(one)) for one in first] == [K, K, 0]


# No maps


class Shapes(TorchDispatchMode):
    """Notes the shapes of all tensors that are made."""

    def __init__(self):
        super().__init__()
        self.shapes = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for one in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(one, torch.Tensor):
                self.shapes.add(tuple(one.shape))
        return out


def made(model, inputs, lengths):
    """Shapes that end in twice the same length: maps, and masks."""
    with Shapes() as seen, torch.no_grad():
        model(**inputs)
    return {shape for shape in seen.shapes if len(shape) > 1 and shape[-1] == shape[-2] and shape[-1] in lengths}


@each_rule
def test_no_map_is_made(rule):
    """Nothing of (T, T), at no length that a layer sees; with a cache and without one, as in training."""
    one = FAMILIES["llava_next"]
    model, inputs = one.model(torch.float32), zoo.one(one.samples()[0], torch.float32)
    del inputs["attention_mask"]
    T, N = inputs["input_ids"].shape[1], zoo.lengths(one.samples()[0])[0]
    with mob.prune(model, **settings(rule)) as pruning:
        model(**inputs)
        (record,) = pruning.records
        lengths = {T, *(T - N + left for left in (*(stage["K"] for stage in record.stages), K))}
        assert made(model, inputs, lengths) == set()
        assert made(model, inputs | {"use_cache": False}, lengths) == set()
    eager = one.model(torch.float32, "eager")
    with mob.prune(eager, **settings(rule)):
        assert any(len(shape) == 4 for shape in made(eager, inputs, lengths)), "nothing would have been seen"


# Stages


@each_rule
def test_records_know_every_stage(rule):
    one = FAMILIES["llava_next"]
    model, samples = one.model(), one.samples()
    with mob.prune(model, **settings(rule)) as pruning, torch.no_grad():
        model(**zoo.collate(samples))
    layers, plan = 5, plan_of(rule, "llava_next")
    for record, sample in zip(pruning.records, samples, strict=True):
        N = sum(zoo.lengths(sample))
        stages = plan(N)
        seen = [sum([N, *(left for layer, left in stages if layer <= index)][-1:]) for index in range(layers)]
        assert record.mean_tokens == pytest.approx(sum(seen) / layers) and record.depth == layers
        assert [(stage["layer"], stage["K"]) for stage in record.stages] == stages[:-1]
        assert type(record).from_json(record.to_json()) == record
    assert pruning.records[2].mean_tokens == 0


def test_a_single_layer_is_refused_where_a_rule_has_several():
    model = FAMILIES["llava"].model()
    for rule in ("sparsevlm", "sparsevlm2", "pyramiddrop"):
        with pytest.raises(ValueError, match=f"{rule} prunes at several layers of its own; leave layer"):
            mob.prune(model, K=K, method=rule, layer=2)
    with pytest.raises(ValueError, match="layers 1 to 4"):
        mob.prune(model, K=K, method="pyramiddrop", options={"layers": [2, 9]})
    with pytest.raises(ValueError, match="ascending"):
        mob.prune(model, K=K, method="pyramiddrop", options={"layers": [3, 2]})
    with pytest.raises(ValueError, match="has 3 stages"):
        mob.prune(model, K=K, method="sparsevlm", options={"layers": [2]})


def test_layers_can_be_moved():
    model = FAMILIES["llava_next"].model()
    with mob.prune(model, K=K, method="pyramiddrop", options={"layers": [1, 4]}) as pruning, torch.no_grad():
        model(**zoo.one(FAMILIES["llava_next"].samples()[0]))
    (record,) = pruning.records
    assert record.stages == [{"method": "pyramiddrop", "layer": 1, "N": 70, "K": 22}] and record.layer == 4


@pytest.mark.parametrize("checkpointing", [False, True])
def test_merged_tokens_pass_gradients_on(checkpointing):
    """Also when layers run again; the mean of a cluster is made anew from what then arrives."""
    one = FAMILIES["llava_next"]
    model, inputs = one.model(), zoo.collate(one.samples()[:2])
    labels = torch.where(inputs["input_ids"] > 29, inputs["input_ids"], -100)
    model.train()

    def gradients():
        model.zero_grad()
        with mob.prune(model, **settings("sparsevlm")) as pruning:
            model(**inputs, labels=labels, use_cache=False).loss.backward()
        assert len(pruning.records) == 2
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    plain = gradients()
    if checkpointing:
        model.gradient_checkpointing_enable()
    again = gradients()
    assert len(plain) == len(again) > 0 and all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_dart_keeps_the_published_count_when_asked():
    one = FAMILIES["llava_next"]
    model = one.model()
    for K_, count in ((7, 4), (8, 12), (23, 20), (64, 68)):
        with mob.prune(model, K=K_, method="dart", options={"published": True}) as pruning, torch.no_grad():
            model(**zoo.one(one.samples()[0]))
        assert count == pruning.records[0].K


def test_a_question_before_the_picture():
    """Nothing follows the picture: its last token asks, as in the released FastV; SparseVLM's raters see nothing."""
    one = FAMILIES["llava"]
    sample = [1, 30, 31, 32, one.picture(0)]
    for rule in RULES:
        exact = reference("llava", rule)
        exact.generate([(zoo.one(sample), zoo.lengths(sample), 1)])
        with mob.prune(one.model(), **settings(rule)) as pruning:
            generate(pruning.model, zoo.one(sample), max_new_tokens=1)
        assert pruning.records[0].keep_indices == exact.kept[0], rule


# Other ways to run


@each_rule
def test_beams(rule):
    one = FAMILIES["llava"]
    model, samples = one.model(), one.samples()[:1]
    with mob.prune(model, **settings(rule)) as pruning:
        model.generate(**zoo.collate(samples), num_beams=3, max_new_tokens=3, pad_token_id=0)
        beams = take(pruning)
        model.generate(**zoo.collate(samples), max_new_tokens=1, pad_token_id=0)
        assert {tuple(kept) for kept in beams} == {tuple(kept) for kept in take(pruning)}


@each_rule
def test_after_a_rule_before_the_decoder(rule):
    """What asks sees the shorter prompt; K of both rules hold."""
    one = FAMILIES["llava_next"]
    model = one.model()
    if "mm_encoder_outputs" not in inspect.signature(model.forward).parameters:
        pytest.skip("this transformers takes no encoded pictures")
    name = rule.split("-")[0]
    options = {"divprune": {"K": 20}, name: RULES[rule][0]}
    with mob.prune(model, K=K, method=f"divprune+{name}", options=options) as pruning:
        answers, _, _ = generate(model, zoo.collate(one.samples()[:2]))
        for sample, answer in zip(one.samples(), answers, strict=False):
            assert generate(model, zoo.one(sample))[0] == [answer]
    records = pruning.records
    assert [record.K for record in records] == [K] * 4 and all(record.stages[0]["K"] == 20 for record in records)
    assert [record.keep_indices for record in records[:2]] == [record.keep_indices for record in records[2:]]


@each_rule
def test_weights_that_are_not_in_memory(rule):
    """accelerate brings them layer by layer, and what a rule asks of a layer's parts too."""
    accelerate = pytest.importorskip("accelerate")
    one = FAMILIES["llava"]
    inputs = zoo.collate(one.samples())
    kept = []
    for model in (one.model(), accelerate.cpu_offload(one.model(), torch.device("cpu"))):
        with mob.prune(model, **settings(rule)) as pruning, torch.no_grad():
            model(**inputs)
        kept.append(take(pruning))
    assert kept[0] == kept[1] and kept[0][0]
