"""Models that cannot be pruned say so in one line, before anything runs; nothing else is raised and nothing is left."""

from __future__ import annotations

import pytest
import torch
import transformers
from transformers.models.auto import modeling_auto

import mob
import zoo
from zoo import FAMILIES

VISION_LANGUAGE = modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES


def build(name: str, **settings):
    """A model of this class without weights, of its default sizes."""
    kind = getattr(transformers, name)
    with torch.device("meta"):
        return kind(kind.config_class(**settings))


def text(name: str, **settings):
    return {"text_config": getattr(transformers, f"{name}Config")(**settings)}


def refusal(model) -> str:
    """What both ways of pruning a model say."""
    said = set()
    for enter in (mob.prune, mob.attach):
        with pytest.raises(ValueError) as raised:
            enter(model)
        said.add(str(raised.value))
    assert not any(module._forward_pre_hooks for module in model.modules())
    (message,) = said
    assert "\n" not in message and message.startswith(type(model).__name__)
    return message


MIXED = "mixes kinds of attention .*Only decoders with full attention can be pruned"
HYBRID = {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention"] * 2}
SPARSE = {"num_hidden_layers": 4, "layer_types": ["minimax_m3_sparse"] * 4}
SIGLIP = {"vision_config": {"model_type": "siglip_vision_model"}}
WORDS = {"vocabulary_map": {"<image>": 5, "IMGIMGAZ": 7}}
DENSE = {"text_config": {"mlp_layer_types": ["dense"] * 32, "num_experts_per_tok": 2}}
# Where default configs make no model.
SETTINGS = {
    "AyaVisionForConditionalGeneration": SIGLIP,
    "FastVlmForConditionalGeneration": SIGLIP,
    "ChameleonForConditionalGeneration": WORDS,
    "Emu3ForConditionalGeneration": WORDS,
    "DeepseekOcr2ForConditionalGeneration": DENSE,
}


REFUSED = [
    ("Gemma3ForConditionalGeneration", {}, r"\(full_attention, sliding_attention\).*Only decoders with full"),
    ("Gemma4ForConditionalGeneration", {}, MIXED),
    ("Cohere2VisionForConditionalGeneration", {}, MIXED),
    ("AyaVisionForConditionalGeneration", SIGLIP, MIXED),
    ("Qwen3_5ForConditionalGeneration", {}, "linear_attention.*Only decoders with full"),
    ("Lfm2VlForConditionalGeneration", lambda: text("Lfm2", **HYBRID), "conv, full_attention"),
    ("Llama4ForConditionalGeneration", {}, "chunked_attention, full_attention"),
    ("UnlimitedOcrForConditionalGeneration", {}, "has layers with reference_sliding_attention"),
    ("MistralLarge4ForConditionalGeneration", {}, "has layers with indexed_attention"),
    ("MiniMaxM3SparseForConditionalGeneration", {"text_config": SPARSE}, "has layers with minimax_m3_sparse"),
    ("MllamaForConditionalGeneration", {}, "takes its pictures by cross-attention"),
    ("Florence2ForConditionalGeneration", {}, "is an encoder and a decoder"),
    ("T5Gemma2ForConditionalGeneration", {}, "is an encoder and a decoder"),
    ("Blip2ForConditionalGeneration", {"image_token_index": 5}, "has no base model below its head"),
    ("InstructBlipForConditionalGeneration", {"image_token_index": 5}, "has no base model below its head"),
    ("Kosmos2ForConditionalGeneration", {}, "no image or video token in its config"),
    ("IdeficsForVisionText2Text", {}, "no image or video token in its config"),
    ("Phi4MultimodalForCausalLM", {}, "no image or video token in its config"),
    ("Qwen2_5OmniForConditionalGeneration", {}, r"prune its thinker, mob.prune\(model.thinker"),
]


SLOW = ("Gemma4", "Cohere2", "Aya", "MistralLarge", "T5", "InstructBlip", "Idefics", "Phi4")  # as others, and large


@pytest.mark.parametrize(
    "name, settings, message",
    [pytest.param(*one, id=one[0], marks=[pytest.mark.slow] * one[0].startswith(SLOW)) for one in REFUSED],
)
def test_a_model_that_cannot_be_pruned_says_why(name, settings, message, record_property):
    if not hasattr(transformers, name):
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    model = build(name, **(settings() if callable(settings) else settings))
    said = refusal(model)
    with pytest.raises(ValueError, match=message):
        mob.prune(model)
    for key, value in (("kind", "refused"), ("class", name), ("message", said)):
        record_property(key, value)


def test_a_head_without_a_base_model_is_refused_in_old_versions():
    """Qwen2.5-Omni computes its logits where it takes its pictures, in transformers 5.17."""
    model = build("Qwen2_5OmniThinkerForConditionalGeneration")
    if hasattr(model, "model") and type(model.model).__name__ == "Qwen2_5OmniThinkerModel":
        assert mob.prune(model).model is model
    else:
        assert "a newer transformers may have one" in refusal(model)


def test_flash_attention_is_refused_where_queries_are_scaled_by_positions():
    settings = {"num_hidden_layers": 4, "rope_parameters": {"llama_4_scaling_beta": 0.1, "rope_theta": 1e4}}
    model = build("Mistral3ForConditionalGeneration", **text("Ministral3", **settings))
    mob.prune(model)
    model.get_decoder().config._attn_implementation_internal = "flash_attention_2"
    assert "attn_implementation='sdpa'" in refusal(model)


def test_features_added_between_layers_need_a_config_that_says_where(monkeypatch):
    model = build("LlavaForConditionalGeneration")

    def forward(self, inputs_embeds=None, deepstack_visual_embeds=None, **kwargs):
        raise NotImplementedError

    monkeypatch.setattr(type(model.get_decoder()), "forward", forward)
    assert "adds deepstack_visual_embeds to its visual tokens between layers" in refusal(model)


@pytest.mark.parametrize("part", ["base", "decoder"])
def test_parts_that_hand_nothing_on_are_refused(part, monkeypatch):
    model = build("LlavaForConditionalGeneration")

    def forward(self, input_ids=None, inputs_embeds=None):
        raise NotImplementedError

    monkeypatch.setattr(type(model.model if part == "base" else model.get_decoder()), "forward", forward)
    assert "hand nothing further on to its layers" in refusal(model)


def test_layers_that_are_handed_something_unknown_are_refused(monkeypatch):
    model = build("LlavaForConditionalGeneration")
    layer = type(model.get_decoder().layers[0])

    def forward(self, hidden_states, attention_mask=None, token_weights=None, **kwargs):
        raise NotImplementedError

    monkeypatch.setattr(layer, "forward", forward)
    assert "hands token_weights to its decoder layers" in refusal(model)


def test_a_base_that_hands_nothing_on_is_noticed_when_it_runs(monkeypatch):
    family = FAMILIES["llava"]
    model = family.model()
    forward = type(model.get_decoder()).forward

    def forgetful(self, *args, **kwargs):
        kwargs.pop("mob_plan", None)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(model.get_decoder()), "forward", forgetful)
    with mob.prune(model, K=4), pytest.raises(ValueError, match="hands nothing on to its decoder layers"):
        model(**zoo.one(family.samples()[0]))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(VISION_LANGUAGE.values())))
def test_every_vision_language_class_is_accepted_or_refused(name, record_property):
    """With its default sizes, without weights: no other error, and what is refused says why in one line."""
    record_property("class", name)
    try:
        model = build(name, **SETTINGS.get(name, {}))
    except Exception:
        record_property("kind", "unbuilt")
        pytest.skip("its default config makes no model here")
    try:
        mob.prune(model)
    except ValueError:
        record_property("message", refusal(model))
        record_property("kind", "refused")
    else:
        record_property("kind", "accepted")
