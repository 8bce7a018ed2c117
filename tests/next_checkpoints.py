"""Synthetic checkpoints of the three families on disk, tiny and random, in every layout that is read."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaTokenizer,
    LlavaNextVideoConfig,
    LlavaOnevisionConfig,
    Qwen2Config,
    Qwen2Tokenizer,
    SiglipVisionConfig,
    VideoLlavaConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

import checkpoints
from llava_next.model.builder import load_pretrained_model

ONEVISION, NEXT_VIDEO, VIDEO_LLAVA = "llava_onevision", "llava_next_video", "video_llava"
SIDES = {ONEVISION: 42, NEXT_VIDEO: 56, VIDEO_LLAVA: 28}  # pixels of a view; patches of 14: 3 x 3, 4 x 4, 2 x 2
LAYERS = 4
PARTS_TEMPLATE = (
    "{% for m in messages %}USER: {% for c in m['content'] %}{% if c['type'] == 'image' %}<image>\n"
    "{% elif c['type'] == 'video' %}<video>\n{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %} ASSISTANT:"
)
# As Qwen's own: text alone, with a system turn.
TEXT_TEMPLATE = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ m['role'] + '\n' + m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def pinpoints(side: int, most: int = 3) -> list[list[int]]:
    return [[side * i, side * j] for i in range(1, most + 1) for j in range(1, most + 1)]


def qwen_tokenizer(folder: Path) -> None:
    """vocab.json, merges.txt and tokenizer_config.json as Qwen2 has them."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(checkpoints.CORPUS.splitlines(), trainer)
    tokenizer.model.save(str(folder))
    made = Qwen2Tokenizer.from_pretrained(folder)
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"], "pad_token": "<|endoftext|>"})
    made.chat_template = TEXT_TEMPLATE
    made.save_pretrained(folder)


def llama_tokenizer(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints.sentencepiece_model(folder)


def add_places(folder: Path, template: str | None) -> None:
    """``<image>`` and ``<video>`` as new tokens, and a chat template beside the tokenizer, as before transformers 5."""
    cls = Qwen2Tokenizer if (folder / "vocab.json").exists() else LlamaTokenizer
    tokenizer = cls.from_pretrained(folder, **({} if cls is Qwen2Tokenizer else {"legacy": True}))
    tokenizer.add_tokens(["<image>", "<video>"], special_tokens=True)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = "<unk>"
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    if template:
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))


def siglip(layers: int = 2) -> SiglipVisionConfig:
    return SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=2,
        image_size=SIDES[ONEVISION],
        patch_size=14,
        vision_use_head=False,
    )


def clip_vision(side: int) -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=side,
        patch_size=14,
        projection_dim=32,
        hidden_act="gelu",
    )


def text(cls, vocabulary: int, **extra):
    return cls(
        vocab_size=vocabulary,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **extra,
    )


def config(family: str, places: tuple[int, int], vocabulary: int = 448, tied: bool = False):
    """A stock config; ``places`` are the ids of ``<image>`` and ``<video>``."""
    shared = {"image_token_index": places[0], "video_token_index": places[1]}
    if family == ONEVISION:
        return LlavaOnevisionConfig(
            vision_config=siglip(),
            text_config=text(Qwen2Config, vocabulary, tie_word_embeddings=tied),
            image_grid_pinpoints=pinpoints(SIDES[family]),
            vision_aspect_ratio="anyres_max_4",
            tie_word_embeddings=tied,
            **shared,
        )
    vision, language = clip_vision(SIDES[family]), text(LlamaConfig, vocabulary)
    if family == NEXT_VIDEO:
        return LlavaNextVideoConfig(
            vision_config=vision,
            text_config=language,
            image_grid_pinpoints=pinpoints(SIDES[family], 2),
            **shared,
        )
    return VideoLlavaConfig(
        vision_config=vision, text_config=language, image_seq_length=4, video_seq_length=40, **shared
    )


STOCK = {
    ONEVISION: transformers.LlavaOnevisionForConditionalGeneration,
    NEXT_VIDEO: transformers.LlavaNextVideoForConditionalGeneration,
    VIDEO_LLAVA: transformers.VideoLlavaForConditionalGeneration,
}


def model(family: str, places: tuple[int, int], seed: int = 0, **more):
    """Random weights, large enough that pictures matter."""
    torch.manual_seed(seed)
    made = STOCK[family](config(family, places, **more)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(6.0) if parameter.ndim == 2 else None
        for place in places:
            made.lm_head.weight[place] = 0
    made.generation_config.eos_token_id = None
    return made


def processor(family: str):
    side = SIDES[family]
    square = {"height": side, "width": side}
    if family == ONEVISION:
        return LlavaOnevisionImageProcessorPil(size=square, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    cls = LlavaNextImageProcessorPil if family == NEXT_VIDEO else CLIPImageProcessorPil
    return cls(size={"shortest_edge": side}, crop_size=square)


def places_of(folder: Path) -> tuple[int, int]:
    """Ids that ``<image>`` and ``<video>`` get behind the tokenizer of a folder."""
    cls = Qwen2Tokenizer if (folder / "vocab.json").exists() else LlamaTokenizer
    length = len(cls.from_pretrained(folder))
    return length, length + 1


# ---------------------------------------------------------------------------------------------------------------
# Layout of transformers


def stock_folder(folder: Path, family: str, source, template: str | None = PARTS_TEMPLATE) -> Path:
    (qwen_tokenizer if family == ONEVISION else llama_tokenizer)(folder)
    add_places(folder, template)
    source.save_pretrained(folder)
    processor(family).save_pretrained(folder)
    return folder


def hub_folder(folder: Path, family: str, source) -> Path:
    """As the llava-hf repositories were written before transformers 5: weights under older names."""
    stock_folder(folder, family, source)
    names = (
        (r"^model\.language_model\.", "language_model.model."),
        (r"^lm_head", "language_model.lm_head"),
        (r"^model\.(\w+_tower)\.", r"\1.vision_model."),
        (r"^model\.", ""),
    )
    save_file(renamed(source.state_dict(), names), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


# ---------------------------------------------------------------------------------------------------------------
# Original layouts

ORIGINAL = {
    ONEVISION: checkpoints.ORIGINAL_NAMES,
    NEXT_VIDEO: checkpoints.ORIGINAL_NAMES,
    VIDEO_LLAVA: (
        *checkpoints.ORIGINAL_NAMES[:3],
        (r"^model\.(image|video)_tower\.", r"model.\1_tower.\1_tower."),
    ),
}


def renamed(state: dict, names) -> dict:
    out = {}
    for name, value in state.items():
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        out[name] = value.clone().contiguous()
    return out


def original_weights(family: str, source) -> dict:
    """State dict under the original names. A tied head is not in such files."""
    state = dict(source.state_dict())
    if source.config.tie_word_embeddings:
        del state["lm_head.weight"]
    return renamed(state, ORIGINAL[family])


def flat(family: str, source) -> dict:
    """config.json as the original repositories write it."""
    language = source.config.text_config
    keys = """vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads
        max_position_embeddings rms_norm_eps bos_token_id eos_token_id"""
    shared = {key: getattr(language, key) for key in keys.split()}
    shared |= {"hidden_act": "silu", "tie_word_embeddings": bool(source.config.tie_word_embeddings)}
    shared |= {"torch_dtype": "float16", "use_mm_proj": True, "mm_projector_type": "mlp2x_gelu", "mm_hidden_size": 32}
    if family == ONEVISION:
        return shared | {
            "architectures": ["LlavaQwenForCausalLM"],
            "model_type": "llava_qwen",
            "image_aspect_ratio": "anyres_max_4",
            "image_grid_pinpoints": [pair[::-1] for pair in source.config.image_grid_pinpoints],
            "mm_patch_merge_type": "spatial_unpad",
            "mm_vision_select_layer": -2,
            "mm_vision_select_feature": "patch",
            "mm_spatial_pool_mode": "bilinear",
            "mm_tunable_parts": "mm_vision_tower,mm_mlp_adapter,mm_language_model",
            "use_sliding_window": False,
            "rope_theta": 10000.0,
            "tokenizer_model_max_length": 32768,
        }
    llama = shared | {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava",
        "image_aspect_ratio": "pad",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "pretraining_tp": 1,
    }
    if family == VIDEO_LLAVA:
        return llama
    return llama | {
        "image_aspect_ratio": "anyres",
        "image_grid_pinpoints": [pair[::-1] for pair in source.config.image_grid_pinpoints],
        "mm_patch_merge_type": "spatial_unpad",
        "mm_resampler_type": "spatial_pool",
        "mm_spatial_pool_mode": source.config.spatial_pool_mode,
        "mm_spatial_pool_stride": source.config.spatial_pool_stride,
        "mm_spatial_pool_out_channels": source.config.vision_config.hidden_size,
        "mm_tunable_parts": "mm_vision_tower,mm_mlp_adapter,mm_language_model",
        "patchify_video_feature": False,
        "rope_scaling": None,
    }


def tower_folder(folder: Path, family: str, source=None) -> Path:
    """The config.json of the tower that an original config names; its weights are in the checkpoint.

    For LLaVA-NeXT-Video a whole CLIP, with the weights of ``source`` or others.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if family == NEXT_VIDEO:
        torch.manual_seed(99)
        tower, side = CLIPVisionModel(clip_vision(SIDES[family])), SIDES[family]
        if source is not None:
            tower.load_state_dict(source.model.vision_tower.state_dict())
        tower.save_pretrained(folder)
        square = {"height": side, "width": side}
        CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=square).save_pretrained(folder)
    elif family == ONEVISION:
        whole = siglip(layers=3)
        whole.vision_use_head = True
        whole.save_pretrained(folder)
    else:
        (folder / "config.json").write_text(json.dumps({"vision_config": clip_vision(SIDES[family]).to_dict()}))
    return folder


def original_folder(
    folder: Path, family: str, source, tower: Path, *, weights: str = "bin", extra: dict | None = None, **changes
) -> Path:
    """A folder of lmms-lab or LanguageBind. ``extra``: further weights, or None for those that are not to be there."""
    (qwen_tokenizer if family == ONEVISION else llama_tokenizer)(folder)
    names = ("mm_image_tower", "mm_video_tower") if family == VIDEO_LLAVA else ("mm_vision_tower",)
    (folder / "config.json").write_text(json.dumps(flat(family, source) | dict.fromkeys(names, str(tower)) | changes))
    state = original_weights(family, source) | (extra or {})
    state = {name: value for name, value in state.items() if value is not None}
    if weights == "safetensors":
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    ordered = sorted(state)
    shards = {f"pytorch_model-{i + 1:05d}-of-00002.bin": ordered[i::2] for i in range(2)}
    for file, part in shards.items():
        torch.save({name: state[name] for name in part}, folder / file)
    index = {"metadata": {"total_size": 0}, "weight_map": {n: f for f, part in shards.items() for n in part}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder


def source_of(family: str, root: Path, **more):
    """The model that every folder of a family holds."""
    probe = root / f"tokenizer-{family}"
    (qwen_tokenizer if family == ONEVISION else llama_tokenizer)(probe)
    return model(family, places_of(probe), **more)


def write_all(root: Path) -> dict[str, Path]:
    out = {}
    for family in STOCK:
        source = source_of(family, root)
        out[f"{family}/stock"] = stock_folder(root / f"{family}-hf", family, source)
        out[f"{family}/hub"] = hub_folder(root / f"{family}-hub", family, source)
        tower = out[f"{family}/tower"] = tower_folder(root / f"tower-of-{family}", family)
        for weights in ("bin", "safetensors"):
            folder = root / f"{family}-original-{weights}"
            out[f"{family}/{weights}"] = original_folder(folder, family, source, tower, weights=weights)
    return out


# ---------------------------------------------------------------------------------------------------------------
# Videos


def frames(count: int = 12, width: int = 40, height: int = 30) -> np.ndarray:
    """uint8 (count, height, width, 3): brighter from frame to frame."""
    level = np.linspace(20, 235, count).astype(np.uint8)
    return np.broadcast_to(level[:, None, None, None], (count, height, width, 3)).copy()


def write_video(file: Path, pictures: np.ndarray | None = None) -> Path:
    av = pytest.importorskip("av")
    pictures = frames() if pictures is None else pictures
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = pictures.shape[2], pictures.shape[1], "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return file


def environment() -> dict[str, str]:
    """For processes that tests start: they find the packages where this one does, installed or not."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def load(folder, **kwargs):
    """(tokenizer, model, image processor, context length); the name given says nothing."""
    kwargs = {"device": "cpu", "attn_implementation": "sdpa"} | kwargs
    return load_pretrained_model(str(folder), None, "any-name", **kwargs)


def stored(file: Path) -> dict:
    """The tensors of a safetensors file, in memory."""
    from safetensors.torch import load

    return load(file.read_bytes())
