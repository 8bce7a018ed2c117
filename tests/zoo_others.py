"""Tiny random models that neither the paper nor a package here names, where a picture has a fixed number of tokens.

Models that take pictures of any size are in ``zoo_grids.py`` and ``zoo_sizes.py``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import transformers
from torch import Tensor

from zoo import IMAGE, TEXT, Family, Part, clip, noise, siglip

other = functools.partial(Family, ours=False)
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = SMALL | {"image_size": 32, "patch_size": 4}
Text = Callable[[], transformers.PreTrainedConfig]


def a(name: str, **more) -> transformers.PreTrainedConfig:
    """A tiny text config of this name."""
    heads = {"head_dim": 12} if name.startswith(("Gemma", "Qwen3")) else {}
    return getattr(transformers, f"{name}Config")(**TEXT | heads | more)


def mistral() -> transformers.PreTrainedConfig:
    return a("Mistral", sliding_window=None)


def square(i: int, length: int = 16, side: int = 32, tokens=lambda ids: {}, **more: Tensor) -> Part:
    """A picture of ``side`` x ``side`` pixels."""
    return Part([IMAGE] * length, {"pixel_values": noise(1, 3, side, side, seed=i), **more}, length, tokens)


def nested(i: int, length: int = 16, **more: Tensor) -> Part:
    """The same with a dimension for the pictures of a sample, as the Idefics models take it."""
    return Part([IMAGE] * length, {"pixel_values": noise(1, 1, 3, 32, 32, seed=i), **more}, length)


# ---------------------------------------------------------------------------------------------------------------
# LLaVA on other decoders, and models made like it


def llava_on(text: Text):
    def make():
        config = transformers.LlavaConfig(vision_config=clip(), text_config=text(), image_token_index=IMAGE)
        return transformers.LlavaForConditionalGeneration(config)

    return make


def vipllava():
    config = transformers.VipLlavaConfig(
        vision_config=clip(), text_config=a("Llama"), image_token_index=IMAGE, vision_feature_layers=[-2, -1]
    )
    return transformers.VipLlavaForConditionalGeneration(config)


def internvl(name: str, text: Text):
    """8 x 8 patches, shuffled into 4 x 4 tokens."""

    def make():
        vision = getattr(transformers, f"{name}VisionConfig")(**VISION)
        config = getattr(transformers, f"{name}Config")(
            vision_config=vision, text_config=text(), image_token_id=IMAGE, image_seq_length=16
        )
        return getattr(transformers, f"{name}ForConditionalGeneration")(config)

    return make


def deepseek_vl():
    config = transformers.DeepseekVLConfig(vision_config=siglip(), text_config=a("Llama"), image_token_id=IMAGE)
    return transformers.DeepseekVLForConditionalGeneration(config)


def sam(kind: str, **more):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_dim": 32, "output_channels": 16}
    return getattr(transformers, f"{kind}VisionConfig")(**sizes, window_size=4, global_attn_indexes=[0], **more)


def deepseek_vl_hybrid():
    config = transformers.DeepseekVLHybridConfig(
        vision_config=siglip(),
        high_res_vision_config=sam("Sam", image_size=64, patch_size=4),
        text_config=a("Llama"),
        image_token_id=IMAGE,
    )
    return transformers.DeepseekVLHybridForConditionalGeneration(config)


def two_resolutions(i: int) -> Part:
    return square(i, high_res_pixel_values=noise(1, 3, 64, 64, seed=20 + i))


def got_ocr2():
    """16 x 16 patches, convolved into 4 x 4 tokens."""
    config = transformers.GotOcr2Config(
        vision_config=sam("GotOcr2", image_size=256, patch_size=16),
        text_config=a("Qwen2"),
        image_token_index=IMAGE,
        image_seq_length=16,
    )
    return transformers.GotOcr2ForConditionalGeneration(config)


def janus():
    vision = {k: v for k, v in VISION.items() if k != "intermediate_size"} | {"patch_size": 8}
    config = transformers.JanusConfig(
        vision_config=transformers.JanusVisionConfig(**vision, projection_dim=48, num_image_tokens=16),
        vq_config=transformers.JanusVQVAEConfig(
            base_channels=32,
            latent_channels=32,
            channel_multiplier=[1, 1],
            num_embeddings=16,
            projection_dim=48,
            image_token_embed_dim=48,
        ),
        text_config=a("Llama"),
        image_token_id=IMAGE,
    )
    return transformers.JanusForConditionalGeneration(config)


def step3p7():
    """16 x 16 patches, convolved into 4 x 4 tokens; every layer attends to everything, here."""
    from transformers.models.step3p7.configuration_step3p7 import Step3p7TextConfig, Step3p7VisionConfig

    vision = Step3p7VisionConfig(**SMALL, image_size=64, patch_size=4, max_position_embeddings=256, mlp_ratio=2.0)
    text = Step3p7TextConfig(
        **TEXT,
        head_dim=12,
        moe_intermediate_size=32,
        share_expert_dim=32,
        n_routed_experts=4,
        num_local_experts=4,
        num_experts_per_tok=2,
        mlp_layer_types=["dense"] * 2 + ["sparse"] * 3,
        layer_types=["full_attention"] * 5,
        sliding_window=512,
    )
    config = transformers.Step3p7Config(vision_config=vision, text_config=text, image_token_id=IMAGE)
    return transformers.Step3p7ForConditionalGeneration(config)


# ---------------------------------------------------------------------------------------------------------------
# Resamplers, tables and other projectors


def idefics3(name: str):
    """8 x 8 patches, shuffled into 4 x 4 tokens."""

    def make():
        vision = getattr(transformers, f"{name}VisionConfig")(**VISION)
        config = getattr(transformers, f"{name}Config")(
            vision_config=vision, text_config=a("Llama"), image_token_id=IMAGE, scale_factor=2
        )
        return getattr(transformers, f"{name}ForConditionalGeneration")(config)

    return make


def idefics2():
    """A resampler: 12 tokens without places."""
    config = transformers.Idefics2Config(
        vision_config=transformers.Idefics2VisionConfig(**VISION),
        perceiver_config=transformers.Idefics2PerceiverConfig(
            hidden_size=48,
            resampler_n_latents=12,
            resampler_depth=1,
            resampler_n_heads=2,
            resampler_head_dim=8,
            num_key_value_heads=2,
        ),
        text_config=mistral(),
        image_token_id=IMAGE,
    )
    return transformers.Idefics2ForConditionalGeneration(config)


def aria():
    """A resampler and a mixture of experts."""
    config = transformers.AriaConfig(
        vision_config=transformers.Idefics3VisionConfig(**VISION | {"patch_size": 8}),
        text_config=transformers.AriaTextConfig(**TEXT, moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1),
        image_token_index=IMAGE,
        projector_patch_to_query_dict={16: 12},
    )
    return transformers.AriaForConditionalGeneration(config)


def ovis2():
    """8 x 8 patches; neighbours become one token, a mixture of rows of a table."""
    vision = transformers.Ovis2VisionConfig(**VISION, hidden_stride=2, vocab_size=24, num_visual_indicator_tokens=3)
    config = transformers.Ovis2Config(
        vision_config=vision,
        text_config=a("Qwen2"),
        image_token_id=IMAGE,
        visual_indicator_token_ids=[10, 11, 12],
        hidden_size=48,
        vocab_size=64,
    )
    return transformers.Ovis2ForConditionalGeneration(config)


def granite_docling():
    """Deepstack: features are added after the first three layers."""
    from transformers.models.granite_docling import configuration_granite_docling as kinds

    vision = VISION | {"num_hidden_layers": 4}
    config = transformers.GraniteDoclingConfig(
        vision_config=kinds.GraniteDoclingVisionConfig(
            **vision, out_hidden_size=48, scale_factor=2, deepstack_visual_indexes=[0, 1, 2]
        ),
        text_config=kinds.GraniteDoclingTextConfig(**TEXT, logits_scaling=1.0),
        image_token_id=IMAGE,
        pad_token_id=0,
    )
    return transformers.GraniteDoclingForConditionalGeneration(config)


def masked_tiles(i: int) -> Part:
    return nested(i, pixel_attention_mask=torch.ones(1, 1, dtype=torch.bool))


# ---------------------------------------------------------------------------------------------------------------
# Masks that are not causal


def paligemma():
    config = transformers.PaliGemmaConfig(
        vision_config=siglip(), text_config=a("Gemma"), image_token_index=IMAGE, image_token_id=IMAGE, projection_dim=48
    )
    return transformers.PaliGemmaForConditionalGeneration(config)


def prefixed(i: int) -> Part:
    """As the processor marks a prompt without a suffix: pictures and text see each other, whatever comes first."""
    return square(i, tokens=lambda ids: {"token_type_ids": torch.zeros_like(ids)})


def prefix_sees_itself(ids: list[int], turns: list[tuple[int, int]]) -> Tensor:
    at, (_, end) = torch.arange(len(ids)), turns[0]
    return (at[None] <= at[:, None]) | ((at < end)[:, None] & (at < end)[None])


def molmo2():
    from transformers.models.molmo2 import configuration_molmo2 as kinds

    heads = {"num_key_value_heads": 2, "head_dim": 16}
    vision = VISION | heads | {"image_size": [32, 32], "patch_size": 8, "num_position_embeddings": 16}
    adapter = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48, "text_hidden_size": 48}
    config = transformers.Molmo2Config(
        vision_config=kinds.Molmo2VisionConfig(**vision),
        adapter_config=kinds.Molmo2AdapterConfig(**adapter | heads, vision_feature_layer=[-1, -2]),
        text_config=kinds.Molmo2TextConfig(**TEXT, head_dim=12, additional_vocab_size=8),
        image_patch_id=IMAGE,
        image_start_token_id=7,
        image_end_token_id=8,
        low_res_image_start_token_id=9,
        frame_start_token_id=10,
        frame_end_token_id=11,
    )
    return transformers.Molmo2ForConditionalGeneration(config)


def pooled(i: int) -> Part:
    """16 patches, each its own token; the processor numbers them through the batch."""

    def tokens(ids: Tensor) -> dict[str, Tensor]:
        types = (ids == IMAGE).long()
        return {"mm_token_type_ids": types, "image_token_pooling": torch.arange(int(types.sum()))[:, None]}

    media = {"pixel_values": noise(1, 16, 192, seed=i), "image_grids": torch.tensor([[4, 4, 0, 0]])}
    return Part([IMAGE] * 16, media, 16, tokens)


def pictures_see_each_other(ids: list[int], turns: list[tuple[int, int]]) -> Tensor:
    at, visual = torch.arange(len(ids)), torch.tensor(ids) == IMAGE
    return (at[None] <= at[:, None]) | (visual[:, None] & visual[None])


OTHERS = [
    other("llava_mistral", llava_on(mistral), square),
    other("llava_qwen3", llava_on(lambda: a("Qwen3")), square),
    other("llava_phi3", llava_on(lambda: a("Phi3")), square),
    other("llava_gemma", llava_on(lambda: a("Gemma")), square),
    other("vipllava", vipllava, square),
    other("internvl", internvl("InternVL", lambda: a("Qwen2")), square),
    other("qianfan_ocr", internvl("QianfanOCR", lambda: a("Qwen3")), square),
    other("deepseek_vl", deepseek_vl, square),
    other("deepseek_vl_hybrid", deepseek_vl_hybrid, two_resolutions),
    other("got_ocr2", got_ocr2, lambda i: square(i, side=256)),
    other("janus", janus, square),
    other("step3p7", step3p7, lambda i: square(i, side=64)),
    other("idefics3", idefics3("Idefics3"), nested),
    other("smolvlm", idefics3("SmolVLM"), nested),
    other("idefics2", idefics2, lambda i: nested(i, 12)),
    other("aria", aria, lambda i: square(i, 12)),
    other("ovis2", ovis2, square),
    other("granite_docling", granite_docling, masked_tiles, layer=3, needs="GraniteDoclingConfig"),
    other("paligemma", paligemma, prefixed, attends=prefix_sees_itself, turns=False),
    other("molmo2", molmo2, pooled, attends=pictures_see_each_other, turns=False, needs="Molmo2Config"),
]
