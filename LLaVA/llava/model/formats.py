"""Checkpoints in the layout of the original repository (``liuhaotian/llava-v1.5-*``), loaded into stock classes.

Such a folder says model_type "llava" too, but means something else by it than transformers does: its config is flat,
its weights have other names, and the vision tower is usually not in it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers import AutoImageProcessor, CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaTokenizer, LlavaConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from llava.constants import (
    DEFAULT_IM_END_TOKEN,
    DEFAULT_IM_START_TOKEN,
    DEFAULT_IMAGE_PATCH_TOKEN,
    DEFAULT_IMAGE_TOKEN,
)
from llava.model.language_model.llava_llama import LlavaForConditionalGeneration

# Original names -> names of transformers 5. lm_head keeps its name.
KEYS = {
    r"^model\.mm_projector\.0": "model.multi_modal_projector.linear_1",
    r"^model\.mm_projector\.2": "model.multi_modal_projector.linear_2",
    r"^model\.vision_tower\.vision_tower": "model.vision_tower",
    r"^model\.(embed_tokens|layers|norm)": r"model.language_model.\1",
}
TOWER = "model.vision_tower."
# Buffers that old files carry and that transformers computes.
_BUFFERS = ("rotary_emb.inv_freq", "embeddings.position_ids")
_TEXT_KEYS = """
    vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads hidden_act
    max_position_embeddings initializer_range rms_norm_eps rope_theta rope_scaling attention_bias tie_word_embeddings
    bos_token_id eos_token_id pad_token_id
""".split()  # noqa: SIM905
# What upstream code reads from the config later.
_KEPT_KEYS = ("image_aspect_ratio", "mm_use_im_start_end", "mm_use_im_patch_token", "max_sequence_length")
_SELECT = {"patch": "default", "cls_patch": "full"}


def read_config(path: str | Path) -> dict[str, Any]:
    """config.json of a folder, as it is. ValueError where there is none."""
    file = Path(path) / "config.json"
    try:
        return json.loads(file.read_text())
    except FileNotFoundError:
        raise ValueError(f"{path} has no config.json: give the folder of a model, or its name on the hub") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not valid JSON ({error}): download the model again") from None


def local_folder(name: str, **kwargs: Any) -> Path:
    """The folder of a model: a local path as it is, a hub name downloaded (or found in the cache)."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists() or str(name).startswith((".", "/", "~")):
        raise ValueError(f"{name} is not a folder: give the folder of a model, or its name on the hub")
    try:
        return Path(snapshot_download(name, **kwargs))
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"cannot find the model {name!r}: no such folder here, and the hub did not give it ({reason})"
        ) from error


def is_original(raw: dict[str, Any]) -> bool:
    """Whether a config.json is of the original layout."""
    return "vision_config" not in raw and ("mm_vision_tower" in raw or "mm_projector_type" in raw)


def translate_config(raw: dict[str, Any], vision: CLIPVisionConfig) -> LlavaConfig:
    """The stock config that means the same. ValueError for projectors that transformers has no class for."""
    projector = raw.get("mm_projector_type", "linear")
    if projector != "mlp2x_gelu":
        raise ValueError(f"mm_projector_type={projector!r}: only mlp2x_gelu (LLaVA-1.5 and later) can be loaded")
    feature = raw.get("mm_vision_select_feature", "patch")
    if feature not in _SELECT:
        raise ValueError(f"mm_vision_select_feature={feature!r}: use one of {', '.join(_SELECT)}")
    merge = raw.get("mm_patch_merge_type", "flat")
    if merge != "flat" or raw.get("image_aspect_ratio") == "anyres":
        raise ValueError(f"mm_patch_merge_type={merge!r}: this loader reads LLaVA-1.5 checkpoints (one view a picture)")
    text = LlamaConfig(**{key: raw[key] for key in _TEXT_KEYS if raw.get(key) is not None})
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=text.vocab_size,
        projector_hidden_act="gelu",
        vision_feature_layer=raw.get("mm_vision_select_layer", -2),
        vision_feature_select_strategy=_SELECT[feature],
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        tie_word_embeddings=text.tie_word_embeddings,
    )
    for key in _KEPT_KEYS:
        if key in raw:
            setattr(config, key, raw[key])
    if "MoB_config" in raw:
        config.MoB_config = raw["MoB_config"]
    return config


def load_original(path: Path, raw: dict[str, Any], vision_tower: str | None = None, **kwargs: Any):
    """(tokenizer, model, image processor) of a folder in the original layout.

    Args:
        vision_tower: replaces the config's ``mm_vision_tower`` (a hub name or a folder).
        kwargs: for ``from_pretrained`` (dtype, device_map, ...).

    Raises:
        ValueError: unknown parts, or weights that are missing or left over.
    """
    tower = vision_tower or raw.get("mm_vision_tower")
    if not tower:
        raise ValueError(f"{path}/config.json names no mm_vision_tower: give vision_tower=")
    tower_path = local_folder(tower)
    vision = CLIPVisionConfig.from_pretrained(tower_path)
    tokenizer = load_tokenizer(path, raw)
    model, info = LlavaForConditionalGeneration.from_pretrained(
        path, config=translate_config(raw, vision), key_mapping=KEYS, output_loading_info=True, **kwargs
    )
    # transformers remembers the mapping and would save in the original layout, under a config that is not.
    del model._weight_conversions
    _check_weights(path, info)
    if any(key.startswith(TOWER) for key in info["missing_keys"]):
        own = model.model.vision_tower
        stock = CLIPVisionModel.from_pretrained(tower_path, dtype=own.dtype)
        own.load_state_dict(stock.state_dict())
    _fit_vocabulary(model, tokenizer)
    return tokenizer, model, load_image_processor(tower_path)


def load_tokenizer(path: Path, raw: dict[str, Any]) -> LlamaTokenizer:
    """The sentencepiece tokenizer, with ``<image>`` (and the marks that the config asks for) as new tokens."""
    # legacy=True keeps the blank before a word that follows <image>, as the original chunk-wise code has it.
    tokenizer = LlamaTokenizer.from_pretrained(path, legacy=True)
    if tokenizer("a")["input_ids"][:1] != [tokenizer.bos_token_id]:
        raise ValueError(
            f"the tokenizer in {path} puts no {tokenizer.bos_token} first: tokenizer_config.json is missing"
        )
    marks = [DEFAULT_IMAGE_PATCH_TOKEN] if raw.get("mm_use_im_patch_token", True) else []
    marks += [DEFAULT_IM_START_TOKEN, DEFAULT_IM_END_TOKEN] if raw.get("mm_use_im_start_end", False) else []
    tokenizer.add_tokens([*marks, DEFAULT_IMAGE_TOKEN], special_tokens=True)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token
    tokenizer.padding_side = "left"
    return tokenizer


def load_image_processor(path: Path) -> Any:
    """The picture half of a checkpoint, without torchvision where it is not there."""
    try:
        return AutoImageProcessor.from_pretrained(path)
    except ImportError:  # transformers 5.17 asks for torchvision here even where Pillow would do
        return CLIPImageProcessorPil.from_pretrained(path)


def _check_weights(path: Path, info: dict[str, Any]) -> None:
    """Everything but a whole vision tower must be there, and nothing may be left over."""
    missing = {key for key in info["missing_keys"] if not key.startswith(TOWER)}
    left = {key for key in info["unexpected_keys"] if not key.endswith(_BUFFERS)}
    wrong = [str(key) for key in info["mismatched_keys"]]
    if missing or left or wrong:
        listing = "; ".join(
            f"{name}: {', '.join(sorted(keys)[:4])}{' ...' if len(keys) > 4 else ''}"
            for name, keys in (("missing", missing), ("left over", left), ("of another shape", wrong))
            if keys
        )
        raise ValueError(f"the weights in {path} do not fit a LLaVA-1.5 model ({listing}): download them again")


def _fit_vocabulary(model: LlavaForConditionalGeneration, tokenizer: LlamaTokenizer) -> None:
    """Make room for the new tokens; transformers looks up the placeholder's row before the picture replaces it."""
    model.config.image_token_index = tokenizer.convert_tokens_to_ids(DEFAULT_IMAGE_TOKEN)
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64, mean_resizing=False)
    model.config.text_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    with torch.no_grad():  # the new rows start as noise; a placeholder must not be written by chance
        head = model.get_output_embeddings().weight
        head[model.config.image_token_index :] = 0
