"""Tiny random models that neither the paper nor a package here names, and that take patches with a grid."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor

from zoo import (
    END,
    GRIDS,
    IMAGE,
    QWEN,
    ROPE,
    START,
    TEXT,
    VIDEO,
    Part,
    noise,
    qwen3_video,
    qwen_picture,
    qwen_video,
    token_types,
)
from zoo_others import SMALL, a, other

BREAK = 9  # text that ends a row of placeholders
PLACEHOLDERS = {"image_token_id": IMAGE, "video_token_id": VIDEO}
MARKS = {
    "image_start_token_id": START,
    "image_end_token_id": END,
    "video_start_token_id": 10,
    "video_end_token_id": 11,
}
TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "patch_size": 4}
WINDOWED = TOWER | {"depth": 2, "out_hidden_size": 48, "window_size": 16, "fullatt_block_indexes": [1]}
DEEP = TOWER | {
    "depth": 4,
    "out_hidden_size": 48,
    "num_position_embeddings": 64,
    "deepstack_visual_indexes": [0, 1, 2],
}
INTERLEAVED = TEXT | {"rope_parameters": ROPE | {"mrope_interleaved": True}, "head_dim": 12}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


def make(module: str, name: str, **settings: Any) -> Any:
    """A config of ``transformers.models.<module>``."""
    kinds = importlib.import_module(f"transformers.models.{module}.configuration_{module}")
    return getattr(kinds, f"{name}Config")(**settings)


def no_types(ids: Tensor) -> dict[str, Tensor]:
    return {}


def patches(*shape: int, tokens=token_types, **more: Tensor) -> Callable[[int], Part]:
    """Pictures as patches of this shape, merged two by two."""

    def picture(i: int) -> Part:
        t, h, w = GRIDS[i]
        media = {"pixel_values": noise(h * w, *shape, seed=i), "image_grid_thw": torch.tensor([[t, h, w]]), **more}
        return Part([START, *[IMAGE] * (h * w // 4), END], media, h * w // 4, tokens)

    return picture


def untyped(part: Callable[[int], Part], **more: Tensor) -> Callable[[int], Part]:
    """For models that find the pictures without ``mm_token_type_ids``."""

    def other(i: int) -> Part:
        one = part(i)
        return Part(one.ids, one.media | more, one.length)

    return other


# ---------------------------------------------------------------------------------------------------------------
# Grids and positions in three parts, as Qwen has them


def glm(name: str, text: str, vision: str, **more: Any):
    def model():
        tower = getattr(transformers, f"{vision}VisionConfig")(**TOWER, depth=2, out_hidden_size=48, image_size=32)
        words = getattr(transformers, f"{text}TextConfig")(
            **TEXT, rope_parameters=ROPE | {"partial_rotary_factor": 1.0}, **more
        )
        kind = getattr(transformers, f"{name}Config")
        config = kind(vision_config=tower, text_config=words, **PLACEHOLDERS, **MARKS)
        return getattr(transformers, f"{name}ForConditionalGeneration")(config)

    return model


def ernie4_5_vl_moe():
    """Text and pictures have experts of their own."""
    text = make(
        "ernie4_5_vl_moe",
        "Ernie4_5_VLMoeText",
        **TEXT,
        rope_parameters=ROPE,
        moe_intermediate_size=[32, 16],
        moe_num_experts=4,
        moe_k=2,
        moe_num_shared_experts=1,
        mlp_layer_types=["dense"] + ["sparse"] * 4,
    )
    vision = make("ernie4_5_vl_moe", "Ernie4_5_VLMoeVision", **TOWER, depth=2)
    config = transformers.Ernie4_5_VLMoeConfig(vision_config=vision, text_config=text, **PLACEHOLDERS, **MARKS)
    return transformers.Ernie4_5_VLMoeForConditionalGeneration(config)


def whose_experts(ids: Tensor) -> dict[str, Tensor]:
    types = token_types(ids)
    return types | {"moe_mm_token_type_ids": types["mm_token_type_ids"]}


def paddleocr_vl():
    config = transformers.PaddleOCRVLConfig(
        vision_config=make("paddleocr_vl", "PaddleOCRVision", **SMALL, patch_size=4, image_size=32),
        text_config=make("paddleocr_vl", "PaddleOCRText", **TEXT, head_dim=12, rope_parameters=ROPE),
        **QWEN,
    )
    return transformers.PaddleOCRVLForConditionalGeneration(config)


def cosmos3_edge():
    config = transformers.Cosmos3EdgeConfig(
        vision_config=make("cosmos3_edge", "Cosmos3EdgeVision", **SMALL, patch_size=4, num_patches=64),
        text_config=make("cosmos3_edge", "Cosmos3EdgeText", **TEXT, head_dim=12, rope_parameters=ROPE),
        projector_hidden_size=64,
        **QWEN,
    )
    return transformers.Cosmos3EdgeForConditionalGeneration(config)


def cosmos3_omni():
    config = transformers.Cosmos3OmniConfig(vision_config=DEEP, text_config=INTERLEAVED, **QWEN)
    return transformers.Cosmos3OmniForConditionalGeneration(config)


def qwen3_vl_moe():
    config = transformers.Qwen3VLMoeConfig(vision_config=DEEP, text_config=INTERLEAVED | EXPERTS, **QWEN)
    return transformers.Qwen3VLMoeForConditionalGeneration(config)


AUDIO = {"encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16, "d_model": 16, "n_window": 4}


def qwen2_5_omni_thinker():
    config = make(
        "qwen2_5_omni",
        "Qwen2_5OmniThinker",
        vision_config=WINDOWED,
        audio_config=AUDIO | {"num_mel_bins": 8, "output_dim": 48},
        text_config=TEXT | {"rope_parameters": ROPE},
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        audio_token_index=61,
        audio_start_token_id=62,
        audio_end_token_id=63,
        vision_start_token_id=START,
        vision_end_token_id=END,
    )
    return transformers.Qwen2_5OmniThinkerForConditionalGeneration(config)


def qwen3_omni_moe_thinker():
    config = make(
        "qwen3_omni_moe",
        "Qwen3OmniMoeThinker",
        vision_config=DEEP,
        audio_config=AUDIO | {"num_mel_bins": 16, "output_dim": 48, "downsample_hidden_size": 8},
        text_config=INTERLEAVED | EXPERTS,
        audio_token_id=61,
        audio_start_token_id=62,
        **QWEN,
    )
    return transformers.Qwen3OmniMoeThinkerForConditionalGeneration(config)


def hunyuan_vl():
    vision = {"patch_size": 4, "out_hidden_size": 48, "text_hidden_size": 48, "max_image_size": 64, "min_image_size": 8}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2, 2]}
    config = transformers.HunYuanVLConfig(
        vision_config=make("hunyuan_vl", "HunYuanVLVision", **SMALL, **vision),
        text_config=make("hunyuan_vl", "HunYuanVLText", **TEXT, head_dim=12, rope_parameters=rope),
        image_token_id=IMAGE,
        im_start_id=START,
        im_end_id=END,
        im_newline_id=BREAK,
    )
    return transformers.HunYuanVLForConditionalGeneration(config)


def hunyuan_picture(i: int) -> Part:
    """Rows end with newlines; one token before all, one after."""
    t, h, w = GRIDS[i]
    length = (h // 2) * (w // 2 + 1) + 2
    media = {"pixel_values": noise(h * w, 48, seed=i), "image_grid_thw": torch.tensor([[t, h, w]])}
    return Part([START, *[IMAGE] * length, END], media, length, token_types)


# ---------------------------------------------------------------------------------------------------------------
# Grids and ordinary positions


def video_llama_3():
    vision = transformers.VideoLlama3VisionConfig(**SMALL, patch_size=4)
    config = transformers.VideoLlama3Config(vision_config=vision, text_config=a("Qwen2"), **PLACEHOLDERS)
    return transformers.VideoLlama3ForConditionalGeneration(config)


def video_llama_video(i: int) -> Part:
    media = {"pixel_values_videos": noise(48, 48, seed=10 + i), "video_grid_thw": torch.tensor([[2, 4, 6]])}
    return Part([VIDEO] * 12, media | {"video_merge_sizes": torch.tensor([2])}, 12)


def kimi_k25():
    """Latent attention and a mixture of experts."""
    text = transformers.DeepseekV3Config(
        **TEXT | {"num_key_value_heads": 4},
        moe_intermediate_size=32,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        kv_lora_rank=16,
        q_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
    )
    vision = make("kimi_k25", "Kimi_K25Vision", **SMALL, patch_size=4, pos_emb_height=8, pos_emb_width=8)
    config = transformers.Kimi_K25Config(vision_config=vision, text_config=text, projection_hidden_size=32, **QWEN)
    return transformers.Kimi_K25ForConditionalGeneration(config)


def hyperclovax_vision_v2():
    config = transformers.HyperCLOVAXVisionV2Config(
        vision_config=make("qwen2_5_vl", "Qwen2_5_VLVision", **WINDOWED), text_config=a("HyperCLOVAX"), **PLACEHOLDERS
    )
    return transformers.HyperCLOVAXVisionV2ForConditionalGeneration(config)


seconds = untyped(qwen_video, video_second_per_grid=torch.tensor([1.0]))
GLM_MOE = {"moe_intermediate_size": 32, "num_experts_per_tok": 2, "n_routed_experts": 4, "n_shared_experts": 1}
GRIDDED = [
    other("glm4v", glm("Glm4v", "Glm4v", "Glm4v"), qwen_picture),
    other("glm46v", glm("Glm46V", "Glm4v", "Glm4v"), qwen_picture),
    other("glm_ocr", glm("GlmOcr", "GlmOcr", "GlmOcr", head_dim=12), qwen_picture),
    other("glm4v_moe", glm("Glm4vMoe", "Glm4vMoe", "Glm4vMoe", head_dim=12, **GLM_MOE), qwen_picture),
    other("ernie4_5_vl_moe", ernie4_5_vl_moe, patches(48, tokens=whose_experts), turns=False),
    other("paddleocr_vl", paddleocr_vl, patches(3, 4, 4)),
    other("cosmos3_edge", cosmos3_edge, patches(48)),
    other("cosmos3_omni", cosmos3_omni, qwen_picture, qwen3_video, layer=3),
    other("qwen3_vl_moe", qwen3_vl_moe, qwen_picture, qwen3_video, layer=3),
    other(
        "qwen2_5_omni_thinker",
        qwen2_5_omni_thinker,
        untyped(qwen_picture),
        seconds,
        turns=False,
        needs="Qwen2_5OmniThinkerModel",
    ),
    other(
        "qwen3_omni_moe_thinker",
        qwen3_omni_moe_thinker,
        untyped(qwen_picture),
        layer=3,
        turns=False,
        needs="Qwen3OmniMoeThinkerModel",
    ),
    # HunYuan numbers its pictures through the batch: a sample after one with pictures is not the same alone.
    other("hunyuan_vl", hunyuan_vl, hunyuan_picture, first=1),
    other(
        "video_llama_3",
        video_llama_3,
        patches(48, tokens=no_types, image_merge_sizes=torch.tensor([2])),
        video_llama_video,
    ),
    other("kimi_k25", kimi_k25, patches(3, 4, 4, tokens=no_types)),
    other(
        "hyperclovax_vision_v2",
        hyperclovax_vision_v2,
        untyped(qwen_picture),
        untyped(qwen_video),
        needs="HyperCLOVAXVisionV2Config",
    ),
]
