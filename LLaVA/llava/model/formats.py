"""Checkpoints in the layout of the original repository (``liuhaotian/llava-v1.[56]-*``), loaded into stock classes.

Such a folder says model_type "llava" too, but means something else by it than transformers does: its config is flat,
its weights have other names, and the vision tower is usually not in it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import snapshot_download
from jinja2 import TemplateError
from safetensors import safe_open
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaTokenizer,
    LlavaConfig,
    LlavaNextConfig,
    MistralConfig,
)
from transformers.utils import logging as transformers_logging

from llava.constants import (
    DEFAULT_IM_END_TOKEN,
    DEFAULT_IM_START_TOKEN,
    DEFAULT_IMAGE_PATCH_TOKEN,
    DEFAULT_IMAGE_TOKEN,
)
from llava.mm_utils import read_pinpoints
from llava.model.language_model.llava_llama import LlavaForConditionalGeneration
from llava.model.language_model.llava_next import LlavaNextForConditionalGeneration

MODELS = {"llava": LlavaForConditionalGeneration, "llava_next": LlavaNextForConditionalGeneration}

# Original names -> names of transformers 5. lm_head keeps its name.
KEYS = {
    r"^model\.mm_projector\.0": "model.multi_modal_projector.linear_1",
    r"^model\.mm_projector\.2": "model.multi_modal_projector.linear_2",
    r"^model\.vision_tower\.vision_tower": "model.vision_tower",
    r"^model\.(embed_tokens|layers|norm)": r"model.language_model.\1",
}
TOWER = "model.vision_tower."
# Gigabytes in hub repositories that nothing here reads: weights of other frameworks.
_OF_OTHERS = ["*.h5", "*.msgpack", "*.ot", "*.onnx*", "onnx/*", "*.gguf", "consolidated*"]
# Buffers that old files carry and that transformers computes.
_BUFFERS = ("rotary_emb.inv_freq", "embeddings.position_ids")
_TEXT_KEYS = """
    vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads hidden_act
    max_position_embeddings initializer_range rms_norm_eps rope_theta rope_scaling rope_parameters attention_bias
    tie_word_embeddings bos_token_id eos_token_id pad_token_id head_dim sliding_window
""".split()  # noqa: SIM905
# What upstream code reads from the config later.
_KEPT_KEYS = (
    "image_aspect_ratio",
    "mm_patch_merge_type",
    "mm_use_im_start_end",
    "mm_use_im_patch_token",
    "max_sequence_length",
)
_OTHERS = ("MPT", "Mixtral", "Qwen", "Gemma")
_SELECT = {"patch": "default", "cls_patch": "full"}


def read_config(path: str | Path, name: str = "config.json") -> dict[str, Any]:
    """config.json of a folder (or another JSON file in it), as it is. ValueError where there is none."""
    file = Path(path) / name
    try:
        return json.loads(file.read_text())
    except FileNotFoundError:
        raise ValueError(f"{path} has no {name}: give the folder of a model, or its name on the hub") from None
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
        return Path(snapshot_download(name, ignore_patterns=_OF_OTHERS, **kwargs))
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"cannot find the model {name!r}: no such folder here, and the hub did not give it ({reason})"
        ) from error


def is_original(raw: dict[str, Any]) -> bool:
    """Whether a config.json is of the original layout."""
    return "vision_config" not in raw and ("mm_vision_tower" in raw or "mm_projector_type" in raw)


def translate_config(raw: dict[str, Any], vision: CLIPVisionConfig) -> LlavaConfig | LlavaNextConfig:
    """The stock config that means the same. ValueError for what transformers has no class for."""
    projector = raw.get("mm_projector_type", "linear")
    if projector != "mlp2x_gelu":
        raise ValueError(f"mm_projector_type={projector!r}: only mlp2x_gelu (LLaVA-1.5 and later) can be loaded")
    feature = raw.get("mm_vision_select_feature", "patch")
    if feature not in _SELECT:
        raise ValueError(f"mm_vision_select_feature={feature!r}: use one of {', '.join(_SELECT)}")
    text = text_config(raw)
    shared = {
        "vision_config": vision,
        "text_config": text,
        "image_token_index": text.vocab_size,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": raw.get("mm_vision_select_layer", -2),
        "vision_feature_select_strategy": _SELECT[feature],
        "image_seq_length": (vision.image_size // vision.patch_size) ** 2,
        "tie_word_embeddings": text.tie_word_embeddings,
    }
    merge, aspect = raw.get("mm_patch_merge_type", "flat"), raw.get("image_aspect_ratio") or "square"
    if merge == "flat" and not aspect.startswith("anyres"):
        config = LlavaConfig(**shared)
    elif merge == "spatial_unpad" and aspect == "anyres":
        # (width, height) there, (height, width) here; the order decides between equally good ones.
        pinpoints = [[height, width] for width, height in read_pinpoints(raw.get("image_grid_pinpoints"))]
        config = LlavaNextConfig(**shared, image_grid_pinpoints=pinpoints)
    else:
        raise ValueError(
            f"mm_patch_merge_type={merge!r} with image_aspect_ratio={aspect!r}: this loader reads LLaVA-1.5 (one view "
            "a picture) and LLaVA-1.6 (spatial_unpad with anyres)"
        )
    for key in _KEPT_KEYS:
        if key in raw:
            setattr(config, key, raw[key])
    if "MoB_config" in raw:
        config.MoB_config = raw["MoB_config"]
    return config


def text_config(raw: dict[str, Any]) -> LlamaConfig | MistralConfig:
    """The language model's part of a flat config."""
    kind = f"{raw.get('model_type', '')} {' '.join(raw.get('architectures') or [])}".lower()
    if other := next((name for name in _OTHERS if name.lower() in kind), None):
        raise ValueError(f"LLaVA on {other} cannot be loaded from an original folder: only on Llama and Mistral")
    values = {key: raw[key] for key in _TEXT_KEYS if raw.get(key) is not None}
    if "mistral" in kind:
        # Unlike the others, absence of a window means none only if it is said.
        return MistralConfig(**values | {"sliding_window": raw.get("sliding_window")})
    return LlamaConfig(**values)


def load_original(path: Path, raw: dict[str, Any], vision_tower: str | None = None, **kwargs: Any):
    """(tokenizer, model, image processor) of a folder in the original layout.

    Args:
        vision_tower: replaces the config's ``mm_vision_tower`` (a hub name or a folder).
        kwargs: for ``from_pretrained`` (dtype, device_map, ...).

    Raises:
        ValueError: unknown parts, or weights that are missing or left over.
    """
    inside = holds_tower(path)
    tower = tower_folder(path, raw, vision_tower, settings_only=inside)
    tokenizer = load_tokenizer(path, raw)
    model, info = from_original(path, translate_config(raw, CLIPVisionConfig.from_pretrained(tower)), **kwargs)
    check_weights(path, info, optional=() if inside else (TOWER,))
    fill_tower(model, tower, info["missing_keys"])
    fit_vocabulary(model, tokenizer)
    return tokenizer, model, load_image_processor(tower)


def tower_folder(path: Path, raw: dict[str, Any], chosen: str | None, settings_only: bool = False) -> Path:
    """The folder of the CLIP model that a config names; a checkpoint with its own tower needs only the settings."""
    name = chosen or raw.get("mm_vision_tower")
    if not name:
        raise ValueError(f"{path}/config.json names no mm_vision_tower: give vision_tower=")
    return local_folder(name, **({"allow_patterns": ["*.json"]} if settings_only else {}))


def holds_tower(path: Path) -> bool:
    """Whether a folder in the original layout has the vision tower's weights (LLaVA-1.6 does, LLaVA-1.5 does not)."""
    return any(name.startswith(TOWER) for name in stored_names(path))


def stored_names(path: Path) -> list[str]:
    """Names of the weights in a folder, without loading them where they are indexed or in safetensors files."""
    for index in sorted(path.glob("*.index.json")):
        return list(json.loads(index.read_text())["weight_map"])
    names: list[str] = []
    for file in sorted(path.glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            names += weights.keys()
    if not names:
        for file in sorted(path.glob("pytorch_model*.bin")):
            names += torch.load(file, map_location="meta", weights_only=True)
    return names


@contextmanager
def quiet() -> Iterator[None]:
    """transformers lists as missing what a loader fills in next, such as the vision tower of LLaVA-1.5; loaders check
    the weights themselves."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def from_original(path: Path, config: LlavaConfig | LlavaNextConfig, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
    """(model, loading info) of weights under the original names."""
    model, info = MODELS[config.model_type].from_pretrained(
        path, config=config, key_mapping=KEYS, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
    )
    # transformers remembers the mapping and would save in the original layout, under a config that is not.
    del model._weight_conversions
    return model, info


def fill_tower(model: Any, tower: Path, missing: Iterable[str]) -> None:
    """Load the vision tower from its own folder where the checkpoint has none."""
    if any(key.startswith(TOWER) for key in missing):
        own = model.model.vision_tower
        own.load_state_dict(CLIPVisionModel.from_pretrained(tower, dtype=own.dtype).state_dict())


def load_tokenizer(path: Path, raw: dict[str, Any]) -> LlamaTokenizer:
    """The sentencepiece tokenizer, with ``<image>`` (and the marks that the config asks for) as new tokens."""
    if not (path / "tokenizer_config.json").exists():
        raise ValueError(f"{path} has no tokenizer_config.json: prompts would start without <s>; download it again")
    settings = read_config(path, "tokenizer_config.json")
    kind = settings.get("tokenizer_class", "LlamaTokenizer")
    if not kind.startswith("Llama"):
        raise ValueError(f"{path} has a tokenizer of type {kind!r}: only Llama's can be loaded from an original folder")
    # Whether a blank is put before text that follows a special token; the original tokeniser took True for "not said".
    legacy = settings.get("legacy") is not False
    # Nor does it ask for <s> where the file does not say so, as transformers 4 did.
    begins = {} if "add_bos_token" in settings else {"add_bos_token": True}
    tokenizer = LlamaTokenizer.from_pretrained(path, legacy=legacy, **begins)
    tokenizer.init_kwargs["legacy"] = legacy  # transformers forgets to save it
    marks = [DEFAULT_IMAGE_PATCH_TOKEN] if raw.get("mm_use_im_patch_token", True) else []
    marks += [DEFAULT_IM_START_TOKEN, DEFAULT_IM_END_TOKEN] if raw.get("mm_use_im_start_end", False) else []
    tokenizer.add_tokens([*marks, DEFAULT_IMAGE_TOKEN], special_tokens=True)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token
    tokenizer.padding_side = "left"
    if tokenizer.chat_template and not _places_pictures(tokenizer):
        tokenizer.chat_template = None  # that of the language model before it was a LLaVA (Mistral's, Yi's)
    return tokenizer


def _places_pictures(tokenizer: Any) -> bool:
    """Whether the chat template knows messages with pictures; others fail on them, or print the list."""
    parts = [{"type": "image"}, {"type": "text", "text": "?"}]
    try:
        said = tokenizer.apply_chat_template([{"role": "user", "content": parts}], tokenize=False)
    except (TemplateError, TypeError):
        return False
    return said.count(DEFAULT_IMAGE_TOKEN) == 1 and "'type'" not in said


def load_stock_tokenizer(path: Path) -> Any:
    """The tokenizer of a folder in the layout of transformers, with the chat template that folders of before
    transformers 5 keep beside it."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.padding_side = "left"
    if (path / "chat_template.json").is_file() and not (path / "chat_template.jinja").exists():
        tokenizer.chat_template = read_config(path, "chat_template.json")["chat_template"]
    return tokenizer


def load_image_processor(path: Path) -> Any:
    """The picture half of a checkpoint, without torchvision where it is not there."""
    try:
        return AutoImageProcessor.from_pretrained(path)
    except ImportError:  # transformers 5.17 asks for torchvision here even where Pillow would do
        old = (path / "preprocessor_config.json").exists()
        settings = read_config(path, "preprocessor_config.json") if old else read_config(path, "processor_config.json")
        settings = settings.get("image_processor", settings)
        kind = settings.get("image_processor_type", "CLIPImageProcessor")
        pillow = getattr(transformers, f"{kind.removesuffix('Fast').removesuffix('Pil')}Pil", None)
        if pillow is None:
            raise
        return pillow.from_pretrained(path)


def check_weights(path: Path, info: dict[str, Any], optional: tuple[str, ...] = ()) -> None:
    """Everything but what starts with ``optional`` must be there, and nothing may be left over."""
    missing = {key for key in info["missing_keys"] if not key.startswith(optional)}
    left = {key for key in info["unexpected_keys"] if not key.endswith(_BUFFERS)}
    wrong = [str(key) for key in info["mismatched_keys"]]
    if missing or left or wrong:
        listing = "; ".join(
            f"{name}: {', '.join(sorted(keys)[:4])}{' ...' if len(keys) > 4 else ''}"
            for name, keys in (("missing", missing), ("left over", left), ("of another shape", wrong))
            if keys
        )
        raise ValueError(f"the weights in {path} do not fit its config.json ({listing}): download them again")


def fit_vocabulary(model: Any, tokenizer: LlamaTokenizer) -> None:
    """Make room for the new tokens; transformers looks up the placeholder's row before the picture replaces it."""
    there = model.get_input_embeddings().num_embeddings
    model.config.image_token_index = tokenizer.convert_tokens_to_ids(DEFAULT_IMAGE_TOKEN)
    if len(tokenizer) > there:
        model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64, mean_resizing=False)
    model.config.text_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    with torch.no_grad():  # the new rows start as noise; a placeholder must not be written by chance
        head = model.get_output_embeddings().weight
        head[min(there, model.config.image_token_index) :] = 0
