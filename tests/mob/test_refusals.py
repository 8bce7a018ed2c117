"""What cannot work is refused with a remedy; odd input that can work does."""

from __future__ import annotations

import inspect
import json
import warnings

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    Qwen2Config,
)

import mob
from mob.early import ENCODED
from mob.methods import METHODS, create
from mob.methods.base import is_early
from tiny import (
    IMAGE,
    LONG_TEXT,
    NONE,
    ONE,
    PATCHES,
    TWO,
    inputs,
    kept,
    llava,
    llava_config,
    logits,
    pictures,
    prompt,
    traces,
)


@pytest.fixture
def model():
    return llava(torch.float32)


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"given", "codebook", "random"}))
def test_a_broken_picture_beside_a_good_one(model, method):
    """Of a picture that is NaN some K tokens stay; the good one is answered as if alone."""
    if is_early(create(method)) and ENCODED not in inspect.signature(type(model.model).forward).parameters:
        pytest.skip("this transformers takes no encoded pictures")
    pixels = pictures(2, torch.float32)
    pixels[0] = float("nan")
    with mob.prune(model, K=6, method=method) as pruning:
        both = logits(model, **inputs(ONE, ONE, pixels=pixels))
        broken, good = pruning.records
        pruning.clear()
        alone = logits(model, **inputs(ONE, pixels=pixels[1:]))
    assert broken.K == good.K == 6 and good.keep_indices == pruning.records[0].keep_indices
    assert (both[1] - alone[0]).abs().max() < 1e-4


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
        ({"K": mob.MoBConfig(K=6)}, r"Pruning\(model, a MoBConfig\)"),
        ({"K": {"K": 6}}, r"prune\(model, \*\*keys\)"),
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


def test_layers_that_the_tower_adds_to_are_refused(model):
    """Qwen3-VL adds features to its full sequence after the first layers; a shorter one would not fit."""
    model.config.vision_config.deepstack_visual_indexes = [1, 2, 3]
    with pytest.raises(ValueError, match="layers 3 to 4"):
        mob.prune(model, K=6, layer=2)
    mob.prune(model, K=6, layer=3)


@pytest.mark.parametrize("forgotten", [{"K_p": 3}, {"k": 64}, {"Kp_ratio": 0.5, "k_ratio": 0.1}, {"alpha": 0.5}])
def test_sizes_without_K_are_a_mistake(model, forgotten):
    with pytest.raises(ValueError, match="set K"):
        mob.prune(model, **forgotten)
