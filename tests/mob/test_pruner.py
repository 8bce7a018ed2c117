"""Switching pruning on and off, nesting, records, refusals, threads, copies and saved models."""

from __future__ import annotations

import copy
import json
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import transformers
from transformers import (
    AttentionInterface,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    Qwen2Config,
)
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

import mob
from mob.budget import Budget
from mob.methods import METHODS
from mob.pruner import Stage
from mob.record import RetainedPatches
from tiny import IMAGE, NONE, ONE, PATCHES, TWO, batch, llava, llava_config, pictures, prompt

SAMPLES = (ONE, TWO, NONE)
LONG_TEXT = prompt(1, *range(20, 20 + len(ONE) - 1))  # as many tokens as ONE


@pytest.fixture
def model():
    return llava(torch.float32)


def picture_count(samples):
    return sum(sample.count(IMAGE) for sample in samples) // PATCHES


def inputs(*samples, pixels=None):
    """A batch and its pictures; by default as many random ones as the samples need."""
    samples = samples or SAMPLES
    count = picture_count(samples)
    if pixels is None and count:
        pixels = pictures(count, torch.float32)
    return {**batch(*samples), **({} if pixels is None else {"pixel_values": pixels})}


@torch.no_grad()
def logits(model, **given):
    return model(**(given or inputs())).logits


def traces(model):
    """Everything on the model that pruning could leave behind. The first forward pass leaves a stock trace or two."""
    hooks = ("_forward_pre_hooks", "_forward_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks_with_kwargs")
    return [(set(m.__dict__), *(len(getattr(m, name)) for name in hooks)) for m in model.modules()]


def kept(pruning):
    return [len(record.keep_indices) for record in pruning.records]


def in_picture_order(record):
    """Indices that the pictures, rows and columns of a record stand for."""
    cells = zip(record.image, record.row, record.column, strict=True)
    return [image * PATCHES + row * 4 + column for image, row, column in cells]


# Switching on and off


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


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_rule_keeps_exactly_K(model, method):
    with mob.prune(model, K=7, method=method) as pruning:
        logits(model)
    for record, N in zip(pruning.records, (PATCHES, 2 * PATCHES), strict=False):
        assert len(set(record.keep_indices)) == 7 and record.method == method
        assert record.keep_indices == sorted(record.keep_indices) and set(record.keep_indices) <= set(range(N))
    expected = {"prompt": 7, "visual": 0, "random": 0}
    if method in expected:
        assert sum(pruning.records[0].prompt_center) == expected[method]


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


# Refusals


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"K": 6, "layer": 0}, "layer"),
        ({"K": 6, "layer": 5}, "layers 1 to 4"),
        ({"K": 6, "layer": -1}, "l_idx=-1"),
        ({"K": 6, "K_p": 7}, "K_p <= K"),
        ({"K": 0}, "leave K unset"),
        ({"K": -6}, "leave K unset"),
        ({"K": 6, "method": "visaul"}, "did you mean 'visual'"),
        ({"K": 6, "options": {"seed": 1}}, "no option 'seed'"),
        ({"K": 6, "schedul": "weak"}, "did you mean 'schedule'"),
    ],
)
def test_wrong_arguments_are_errors_before_anything_runs(model, arguments, message):
    before = traces(model)
    with pytest.raises(ValueError, match=message):
        mob.prune(model, **arguments)
    assert traces(model) == before


def small(kind, **more):
    """A LLaVA on another decoder."""
    text = kind(
        vocab_size=64,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        **more,
    )
    config = LlavaConfig(vision_config=llava_config().vision_config, text_config=text, image_token_index=IMAGE)
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id = None
    return model


def test_a_model_without_pictures_is_refused():
    config = LlamaConfig(
        vocab_size=64, hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4
    )
    for enter in (mob.prune, mob.attach):
        with pytest.raises(ValueError, match="LlamaForCausalLM.*such as LlavaForConditionalGeneration"):
            enter(LlamaForCausalLM(config))


@pytest.mark.parametrize("what", [torch.nn.Linear(2, 2), None])
def test_other_objects_are_refused(what):
    with pytest.raises(ValueError, match="vision-language model"):
        mob.prune(what, K=6)


def test_mixed_kinds_of_attention_are_refused():
    model = small(Qwen2Config, use_sliding_window=True, sliding_window=16, max_window_layers=2)
    assert len(set(model.config.text_config.layer_types)) == 2
    with pytest.raises(ValueError, match="full_attention, sliding_attention.*Only decoders with full attention"):
        mob.prune(model, K=6)


def test_a_prompt_beyond_the_sliding_window_is_refused():
    model = small(MistralConfig, sliding_window=len(ONE))
    with mob.prune(model, K=6) as pruning:
        logits(model, **inputs(ONE))
        assert kept(pruning) == [6]
        with pytest.raises(ValueError, match=f"{len(TWO)} tokens.*last {len(ONE)}.*shorten the prompt"):
            logits(model, **inputs(TWO))


@pytest.mark.parametrize("new", ["generated", "given"])
def test_going_on_beyond_the_sliding_window_is_refused(new):
    """A short layer would see tokens that the window of a full layer has left behind."""
    model = small(MistralConfig, sliding_window=len(ONE) + 3)
    with mob.prune(model, K=6):
        ids = inputs(ONE)
        options = {"do_sample": False, "pad_token_id": 0, "return_dict_in_generate": True}
        out = model.generate(**ids, **options, max_new_tokens=4)  # the last one is not read any more
        with pytest.raises(ValueError, match=f"last {len(ONE) + 3}"):
            if new == "generated":
                model.generate(**ids, **options, max_new_tokens=5)
            else:
                logits(model, input_ids=torch.tensor([[30, 31]]), past_key_values=out.past_key_values)


# What the input looks like


def test_text_alone_is_left_alone(model):
    plain = logits(model, **inputs(NONE))
    with mob.prune(model, K=6) as pruning:
        assert torch.equal(logits(model, **inputs(NONE)), plain)
    assert [(r.N, r.K) for r in pruning.records] == [(0, 0)]


def test_broken_pixels_do_not_crash(model):
    """Exactly K stay, the record goes to JSON, and the sample beside it answers as before."""
    pixels = pictures(3, torch.float32)
    with mob.prune(model, K=6) as pruning:
        sane = logits(model, **inputs(pixels=pixels))
        pixels[0] = float("nan")
        got = logits(model, **inputs(pixels=pixels))
    assert kept(pruning) == [6, 6, 0] * 2
    assert got[0, -1].isnan().all() and torch.allclose(got[1:, -1], sane[1:, -1], atol=1e-4)
    assert json.loads(pruning.records[3].to_json())["K"] == 6


@pytest.mark.parametrize("start, length", [(35, 576), (35, None), (None, 576), (3, 15)])
def test_a_contradicting_span_is_said_once(model, start, length):
    with mob.prune(model, K=6, image_token_start_index=start, image_token_length=length) as pruning:
        with pytest.warns(UserWarning, match="MoB_config") as seen:
            logits(model)
            logits(model)
        text = str(seen[0].message)
        assert len([w for w in seen if "MoB_config" in str(w.message)]) == 1
    assert "image_token_start_index" in text and "image_token_length" in text
    assert f"starts at token {start or 3} and has {length or PATCHES}" in text
    assert f"starts at 3 and has {PATCHES}" in text
    with mob.prune(model, K=6) as unnamed:
        logits(model)
    assert [r.keep_indices for r in unnamed.records] * 2 == [r.keep_indices for r in pruning.records]


def test_a_matching_span_is_not_mentioned(model):
    """Padding does not count, as the user who wrote the numbers did not see any."""
    with mob.prune(model, K=6, image_token_start_index=3, image_token_length=PATCHES), warnings.catch_warnings():
        warnings.simplefilter("error")
        logits(model, **inputs(ONE, prompt(1, *range(20, 52))))


def test_a_span_in_the_second_turn_is_counted_from_the_first_token(model):
    """Of the second turn the model gets the new tokens only."""
    turn = prompt(42, "image", 43)
    pixels = pictures(2, torch.float32)
    start = len(ONE) + 1
    with mob.prune(model, K=6) as pruning:
        cache = model(**inputs(ONE, pixels=pixels[:1]), use_cache=True).past_key_values
    with mob.prune(model, K=6, image_token_start_index=start, image_token_length=PATCHES) as pruning:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            logits(model, input_ids=torch.tensor([turn]), pixel_values=pixels[1:], past_key_values=cache)
        assert kept(pruning) == [6]


@pytest.mark.parametrize("text", [NONE, LONG_TEXT], ids=["shorter", "as-long"])
@pytest.mark.parametrize("as_dict", [True, False], ids=["dict", "tuple"])
def test_hidden_states_before_the_cut_are_those_of_the_plain_model(model, text, as_dict):
    """Also where a text-only sample is so long that the short batch is as wide as the full one."""
    given = inputs(ONE, text)
    real = given["attention_mask"].bool()

    def states():
        out = model.model(**given, output_hidden_states=True, return_dict=as_dict, use_cache=False)
        return out.hidden_states if as_dict else next(part for part in out if isinstance(part, tuple))

    with torch.no_grad():
        plain = states()
        with mob.prune(model, K=6, layer=2) as pruning:
            pruned = states()
    assert [h.shape[:2] for h in pruned] == [real.shape] * 6
    assert all(torch.equal(a[real], b[real]) for a, b in zip(plain[:3], pruned, strict=False))
    assert all(torch.allclose(a[1][real[1]], b[1][real[1]], atol=1e-4) for a, b in zip(plain, pruned, strict=True))
    dropped = next(i for i in range(PATCHES) if i not in pruning.records[0].keep_indices)
    place = int(real[0].nonzero()[3 + dropped])
    assert torch.equal(pruned[3][0, place], pruned[3][0, place - 1])


# Threads, copies, files


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


# Flash attention: 2D masks, rows unpadded before the kernel runs


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
