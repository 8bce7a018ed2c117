"""Models at the shapes that ``bench.py`` knows, and inputs for them: sizes of the real ones, random weights.

What a forward pass costs does not depend on the weights. What the lazy selection on CPUs costs does, a little: random
weights leave visual tokens more alike than a trained tower does.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, PreTrainedConfig

from mob.spans import visual_token_ids

SCENES = Path(__file__).parent.parent / "LLaVA/llava/scenes/checkpoint"
_PLAIN_IDS = 10, 30000  # text tokens are drawn between: above marks, below placeholders
_VICUNA = {
    "vocab_size": 32064,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 32768,  # more than Vicuna's, for sweeps over several pictures
}
_CLIP_LARGE = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
    "projection_dim": 768,
}
_QWEN_IDS = {"image_token_id": 151655, "video_token_id": 151656, "vision_start_token_id": 151652}


def llava_7b() -> PreTrainedConfig:
    return transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**_CLIP_LARGE, image_size=336),
        text_config=transformers.LlamaConfig(**_VICUNA),
        image_token_index=32000,
    )


def llava_next_7b() -> PreTrainedConfig:
    return transformers.LlavaNextConfig(
        vision_config=transformers.CLIPVisionConfig(**_CLIP_LARGE, image_size=336),
        text_config=transformers.LlamaConfig(**_VICUNA),
        image_token_index=32000,
        image_grid_pinpoints=[[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
    )


def qwen2_vl_7b() -> PreTrainedConfig:
    text = {
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6},
        "bos_token_id": 151643,
        "eos_token_id": 151645,
    }
    vision = {"depth": 32, "embed_dim": 1280, "hidden_size": 3584, "num_heads": 16, "mlp_ratio": 4, "patch_size": 14}
    return transformers.Qwen2VLConfig(
        text_config=text, vision_config=vision, vision_end_token_id=151653, tie_word_embeddings=False, **_QWEN_IDS
    )


def video_llava_7b() -> PreTrainedConfig:
    return transformers.VideoLlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**_CLIP_LARGE, image_size=224),
        text_config=transformers.LlamaConfig(**_VICUNA),
        image_token_index=32000,
        video_token_index=32001,
    )


def mid() -> PreTrainedConfig:
    """What a CPU does in seconds: 8 layers of width 1024 behind a small tower of 24 x 24 patches."""
    vision = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4}
    text = {
        "vocab_size": 4096,
        "hidden_size": 1024,
        "intermediate_size": 2752,
        "num_hidden_layers": 8,
        "num_attention_heads": 16,
        "max_position_embeddings": 32768,
    }
    return transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**vision, image_size=336, patch_size=14, projection_dim=256),
        text_config=transformers.LlamaConfig(**text),
        image_token_index=4000,
    )


@dataclass(frozen=True)
class Shape:
    """``config`` makes the sizes (None: the tiny checkpoint of this repository); ``K`` is the paper's budget."""

    config: Callable[[], PreTrainedConfig] | None
    K: int
    big: bool = False


SHAPES = {
    "llava-1.5-7b": Shape(llava_7b, 64, big=True),
    "llava-next-7b": Shape(llava_next_7b, 320, big=True),
    "qwen2-vl-7b": Shape(qwen2_vl_7b, 128, big=True),
    "video-llava-7b": Shape(video_llava_7b, 136, big=True),
    "mid": Shape(mid, 64),
    "scenes": Shape(None, 24),
}


def build(
    shape: str,
    path: str | None,
    device: torch.device,
    dtype: torch.dtype,
    attention: str,
    layers: int | None = None,
) -> nn.Module:
    """The model, ready to run. Random weights are made on the device: 7B of them never fill this machine's memory.
    ``layers``: so many of the decoder's, where they are random.

    Raises:
        ValueError: the folder at ``path`` cannot be loaded.
    """
    if path is None and SHAPES[shape].config is None:
        path = str(SCENES)
    torch.manual_seed(0)
    if path is None:
        config = SHAPES[shape].config()
        if layers is not None:
            text = config.get_text_config()
            text.num_hidden_layers = layers
            text.layer_types = getattr(text, "layer_types", None) and text.layer_types[:layers]
        with device:  # not "meta": buffers such as rotary frequencies are computed when a model is made
            model = AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation=attention)
    else:
        try:
            model = AutoModelForImageTextToText.from_pretrained(path, dtype=dtype, attn_implementation=attention)
        except OSError as error:
            raise ValueError(f"--model-path {path}: {str(error).strip().splitlines()[0]}") from error
    model.generation_config.eos_token_id = None  # every run writes as many tokens as were asked for
    model.generation_config.pad_token_id = 0
    return model.to(device).eval()


def sample(config: PreTrainedConfig, *, batch: int, pictures: int, text: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Random pictures and text: ``text`` tokens (half before, half after) and ``pictures`` pictures in every row.

    Returns:
        what the model takes, on the CPU; input_ids are (batch, T).

    Raises:
        ValueError: fewer than 2 text tokens, or a family that has no recipe here.
    """
    if text < 2:
        raise ValueError(f"--text {text}: a prompt has at least 2 text tokens")
    if config.model_type not in _MEDIA:
        raise ValueError(f"{config.model_type} has no recipe for pictures here: use one of {', '.join(_MEDIA)}")
    media, marks = _MEDIA[config.model_type](config, batch * pictures)
    high = min(config.get_text_config().vocab_size, _PLAIN_IDS[1], *visual_token_ids(config))
    if high <= _PLAIN_IDS[0]:
        high = config.get_text_config().vocab_size
    words = torch.randint(_PLAIN_IDS[0], high, (batch, text), generator=torch.Generator().manual_seed(0))
    shown = torch.tensor(marks * pictures).expand(batch, -1)
    ids = torch.cat([words[:, : text // 2], shown, words[:, text // 2 :]], 1)
    out = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    out |= {name: value.to(dtype) if value.is_floating_point() else value for name, value in media.items()}
    if config.model_type == "qwen2_vl":
        out["mm_token_type_ids"] = (ids == config.image_token_id).long()
    return out


def visual_count(config: PreTrainedConfig, ids: Tensor) -> int:
    """N: visual tokens of a row."""
    return sum(int((ids[0] == token).sum()) for token in visual_token_ids(config))


def _noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def _square(config: PreTrainedConfig, count: int) -> tuple[dict[str, Tensor], list[int]]:
    side = config.vision_config.image_size
    patches = (side // config.vision_config.patch_size) ** 2
    return {"pixel_values": _noise(count, 3, side, side)}, [config.image_token_index] * patches


def _tiled(config: PreTrainedConfig, count: int) -> tuple[dict[str, Tensor], list[int]]:
    """Two by two tiles and the whole: 5 x 576 tokens and, in this layout of transformers, 48 newlines."""
    side = config.vision_config.image_size
    grid = side // config.vision_config.patch_size
    media = {
        "pixel_values": _noise(count, 5, 3, side, side),
        "image_sizes": torch.tensor([[2 * side, 2 * side]] * count),
    }
    return media, [config.image_token_index] * (grid**2 + 2 * grid * (2 * grid + 1))


def _merged(config: PreTrainedConfig, count: int) -> tuple[dict[str, Tensor], list[int]]:
    """952 x 952 pixels: 34 x 34 tokens."""
    vision, side = config.vision_config, 68
    width = 3 * vision.temporal_patch_size * vision.patch_size**2
    media = {
        "pixel_values": _noise(count * side**2, width),
        "image_grid_thw": torch.tensor([[1, side, side]] * count),
    }
    tokens = [config.image_token_id] * (side // vision.spatial_merge_size) ** 2
    return media, [config.vision_start_token_id, *tokens, config.vision_end_token_id]


def _filmed(config: PreTrainedConfig, count: int) -> tuple[dict[str, Tensor], list[int]]:
    """Eight frames, each with its CLS token."""
    side = config.vision_config.image_size
    patches = (side // config.vision_config.patch_size) ** 2
    return {"pixel_values_videos": _noise(count, 8, 3, side, side)}, [config.video_token_index] * 8 * (patches + 1)


_MEDIA = {"llava": _square, "llava_next": _tiled, "qwen2_vl": _merged, "video_llava": _filmed}


def takes(module: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inputs without what this version of the module does not know."""
    known = inspect.signature(module.forward).parameters
    return {name: value for name, value in inputs.items() if name in known}
