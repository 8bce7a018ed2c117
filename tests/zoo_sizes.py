"""Tiny random models that neither the paper nor a package here names, and that take pictures with their sizes.

Towers that see a picture as it is, rows of tokens ended by a text token, and tiles.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import transformers

from zoo import IMAGE, PINPOINTS, TEXT, Part, noise, tiled_picture
from zoo_grids import BREAK, make
from zoo_others import SMALL, a, mistral, other

PIXTRAL_SIZES = [(24, 32), (16, 24), (32, 16)]


def pixtral(patch_size: int):
    return transformers.PixtralVisionConfig(**SMALL, image_size=64, patch_size=patch_size, head_dim=16)


def mistral3(text: Callable[[], Any]):
    def model():
        config = transformers.Mistral3Config(
            vision_config=pixtral(4), text_config=text(), image_token_index=IMAGE, spatial_merge_size=2
        )
        return transformers.Mistral3ForConditionalGeneration(config)

    return model


def ministral3():
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    scaling = {"llama_4_scaling_beta": 0.5, "original_max_position_embeddings": 8}
    return a("Ministral3", head_dim=12, rope_parameters=rope | scaling, sliding_window=None)


def pixtral_llava():
    config = transformers.LlavaConfig(
        vision_config=pixtral(8),
        text_config=mistral(),
        image_token_index=IMAGE,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    return transformers.LlavaForConditionalGeneration(config)


def lighton_ocr():
    config = transformers.LightOnOcrConfig(
        vision_config=pixtral(4), text_config=a("Qwen3"), image_token_id=IMAGE, spatial_merge_size=2
    )
    return transformers.LightOnOcrForConditionalGeneration(config)


def pixtral_picture(i: int) -> Part:
    """8 x 8 pixels become one token."""
    height, width = PIXTRAL_SIZES[i]
    pixels = torch.nn.functional.pad(noise(1, 3, height, width, seed=i), (0, 32 - width, 0, 32 - height))
    rows = [IMAGE] * (width // 8) + [BREAK]
    media = {"pixel_values": pixels, "image_sizes": torch.tensor([[height, width]])}
    return Part(rows * (height // 8), media, height * width // 64)


def fuyu():
    text = {name: value for name, value in TEXT.items() if name != "num_key_value_heads"}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    config = transformers.FuyuConfig(
        text_config=transformers.PersimmonConfig(**text, rope_parameters=rope),
        hidden_size=TEXT["hidden_size"],  # transformers 5.17 reads it here
        image_size=32,
        patch_size=8,
        image_token_id=IMAGE,
    )
    return transformers.FuyuForCausalLM(config)


def fuyu_picture(i: int) -> Part:
    """Patches are tokens; nothing says how many rows there are."""
    rows, columns = [(3, 4), (2, 6), (4, 4)][i]
    taken = inspect.signature(transformers.FuyuForCausalLM.forward).parameters
    name = "pixel_values" if "pixel_values" in taken else "image_patches"  # its name in transformers 5.17
    media = {name: noise(1, rows * columns, 192, seed=i)}
    return Part(([IMAGE] * columns + [BREAK]) * rows, media, rows * columns)


def emu3():
    """Pictures are words of the vocabulary; 2 x 2 pixels are one, and rows end with newlines."""
    vq = {"codebook_size": 16, "base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1}
    words = {f"<|visual token {i:06d}|>": 40 + i for i in range(16)}
    config = transformers.Emu3Config(
        vq_config=make("emu3", "Emu3VQVAE", **vq, hidden_size=32, attn_resolutions=[]),
        text_config=make("emu3", "Emu3Text", **TEXT),
        vocabulary_map=words | {"<image>": IMAGE, "<|extra_200|>": BREAK},
    )
    return transformers.Emu3ForConditionalGeneration(config)


def emu3_picture(i: int) -> Part:
    media = {"pixel_values": noise(1, 3, 8, 8, seed=i), "image_sizes": torch.tensor([[8, 8]])}
    return Part([IMAGE] * 20, media, 20)


def granite4_vision():
    """Tiles as LLaVA-NeXT has them, features of several tower layers added before layers 0, 1 and 2."""
    vision = transformers.SiglipVisionConfig(
        **SMALL | {"hidden_size": 64}, image_size=32, patch_size=8, vision_use_head=False
    )
    config = transformers.Granite4VisionConfig(
        vision_config=vision,
        text_config=make("granite4_vision", "Granite4VisionText", **TEXT),
        image_token_index=IMAGE,
        image_grid_pinpoints=PINPOINTS,
        downsample_rate="1/2",
        deepstack_layer_map=[[-2, 0], [-1, 1]],
        spatial_target_layers=[0, 1, 2, 2],
        vision_feature_select_strategy="full",
    )
    return transformers.Granite4VisionForConditionalGeneration(config)


def granite_tiles(i: int) -> Part:
    """Half the rows and columns of a LLaVA-NeXT, its padding cut away, worked out by hand."""
    length = 4 + [2 * 5, 4 * 3, 2 * 7][i]
    return Part([IMAGE] * length, tiled_picture(i).media, length)


SIZED = [
    other("mistral3", mistral3(mistral), pixtral_picture),
    other("ministral3", mistral3(ministral3), pixtral_picture),
    other("pixtral", pixtral_llava, pixtral_picture),
    other("lighton_ocr", lighton_ocr, pixtral_picture),
    other("fuyu", fuyu, fuyu_picture),
    other("emu3", emu3, emu3_picture),
    other("granite4_vision", granite4_vision, granite_tiles, layer=2),
]
