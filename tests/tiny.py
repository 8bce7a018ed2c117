"""Tiny random models, small enough to recompute everything at every step."""

from __future__ import annotations

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

IMAGE = 5  # placeholder id
SIDE = 4
PATCHES = SIDE * SIDE


def llava_config(layers: int = 5, image_size: int = 32) -> LlavaConfig:
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=image_size,
        patch_size=8,
        projection_dim=32,
    )
    text = LlamaConfig(
        vocab_size=64,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE)


def llava(
    dtype: torch.dtype = torch.float64, attention: str = "sdpa", layers: int = 5
) -> LlavaForConditionalGeneration:
    """Random weights that do not depend on dtype or attention; large enough that attention really chooses."""
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(llava_config(layers)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6.0)
        model.lm_head.weight[IMAGE] = 0  # an untrained model would write placeholders
    model.set_attn_implementation(attention)
    model.generation_config.eos_token_id = None
    # The rotary buffers are made in float32; converting afterwards keeps their values.
    return model.to(dtype)


def prompt(*parts: int | str) -> list[int]:
    """Token ids: integers as they are, "image" for one picture's placeholders."""
    out: list[int] = []
    for part in parts:
        out += [IMAGE] * PATCHES if part == "image" else [part]
    return out


# One, two and no pictures; lengths differ, so a batch of them is padded.
ONE = prompt(1, 20, 21, "image", 30, 31, 32)
TWO = prompt(1, "image", 22, 23, "image", 33, 34, 35, 36)
NONE = prompt(1, 24, 25, 26, 40, 41)


def batch(*samples: list[int], pad: str = "left") -> dict[str, torch.Tensor]:
    """Padded input_ids and attention_mask."""
    longest = max(map(len, samples))
    rows = [[0] * (longest - len(s)) + s if pad == "left" else s + [0] * (longest - len(s)) for s in samples]
    ids = torch.tensor(rows)
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


def pictures(count: int, dtype: torch.dtype = torch.float64, seed: int = 1) -> torch.Tensor:
    """Random pixel values (count, 3, 32, 32)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 32, 32, generator=generator, dtype=torch.float64).to(dtype)


SAMPLES = (ONE, TWO, NONE)
LONG_TEXT = prompt(1, *range(20, 20 + len(ONE) - 1))  # as many tokens as ONE


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


def kept(pruning):
    return [len(record.keep_indices) for record in pruning.records]


def traces(model):
    """Everything on the model that pruning could leave behind. The first forward pass leaves a stock trace or two."""
    hooks = ("_forward_pre_hooks", "_forward_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks_with_kwargs")
    return [(set(m.__dict__), *(len(getattr(m, name)) for name in hooks)) for m in model.modules()]
