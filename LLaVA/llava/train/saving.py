"""Writing models and adapters in the layout of the original repository, and reading adapters back to go on training."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlavaNextProcessor, LlavaProcessor
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from llava.model.adapters import LORA, PROJECTOR, TRAINABLES, read_parts
from llava.model.formats import TOWER, read_config
from llava.train.build import Start
from llava.train.trainable import ADAPTER, FULL, LORA_MODE, PROJECTOR_KEYS

LORA_WEIGHTS = "adapter_model.safetensors"
_WHOLE = "model*.safetensors*"  # shards and their index too
_PREFIX = "base_model.model."  # what PEFT puts before the names of the model that it wraps
_TOKENIZER_CONFIG = "tokenizer_config.json"
_TOKENIZER = ("tokenizer.model", "tokenizer.json", _TOKENIZER_CONFIG, "special_tokens_map.json")
_TOKENIZER += ("added_tokens.json",)
_NAMES = (
    (r"^model\.multi_modal_projector\.linear_1", "model.mm_projector.0"),
    (r"^model\.multi_modal_projector\.linear_2", "model.mm_projector.2"),
    (r"^model\.vision_tower\.(vision_model\.)?", "model.vision_tower.vision_tower.vision_model."),
    (r"^model\.language_model\.", "model."),
)
_TEXT = """
    hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads hidden_act head_dim
    max_position_embeddings initializer_range rms_norm_eps attention_bias bos_token_id eos_token_id pad_token_id
    sliding_window
""".split()  # noqa: SIM905
_SELECT = {"default": "patch", "full": "cls_patch"}


def original_name(name: str) -> str:
    """A parameter's name in the original layout."""
    for pattern, replacement in _NAMES:
        name, found = re.subn(pattern, replacement, name)
        if found:
            break
    return name


def vocabulary(config: Any) -> int:
    """Rows that embeddings have in the original layout: without the placeholder and the padding that we add."""
    return min(config.image_token_index, config.text_config.vocab_size)


def flat_config(start: Start, extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """config.json of the original layout; ``extra``: how it was trained."""
    config, text = start.model.config, start.model.config.text_config
    values = text.to_dict()
    mistral = text.model_type == "mistral"
    rope = dict(values.get("rope_parameters") or {})
    theta = rope.pop("rope_theta", None)
    out = {key: values[key] for key in _TEXT if key in values}
    out |= {
        "architectures": ["LlavaMistralForCausalLM" if mistral else "LlavaLlamaForCausalLM"],
        "model_type": "llava_mistral" if mistral else "llava",
        "vocab_size": vocabulary(config),
        "tie_word_embeddings": bool(config.tie_word_embeddings),
        "rope_theta": theta,
        "rope_scaling": rope if rope.get("rope_type", "default") != "default" else None,
        "torch_dtype": str(start.model.dtype).removeprefix("torch."),
        "use_mm_proj": True,
        "mm_vision_tower": start.tower,
        "mm_projector_type": "mlp2x_gelu",
        "mm_hidden_size": config.vision_config.hidden_size,
        "mm_vision_select_layer": config.vision_feature_layer,
        "mm_vision_select_feature": _SELECT[config.vision_feature_select_strategy],
        "mm_use_im_start_end": getattr(config, "mm_use_im_start_end", False),
        "mm_use_im_patch_token": getattr(config, "mm_use_im_patch_token", False),
        "image_aspect_ratio": getattr(config, "image_aspect_ratio", None) or "square",
        "mm_patch_merge_type": "flat",
        "tokenizer_model_max_length": getattr(config, "tokenizer_model_max_length", None),
        "tokenizer_padding_side": "right",
    }
    if pinpoints := getattr(config, "image_grid_pinpoints", None):
        # (width, height) there, (height, width) here
        out |= {"image_grid_pinpoints": [[width, height] for height, width in pinpoints]}
        out |= {"image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad"}
    if getattr(config, "MoB_config", None):
        out["MoB_config"] = config.MoB_config
    out |= extra or {}
    if start.own_tower:  # or the original would load the tower that the config names, not this one
        out["unfreeze_mm_vision_tower"] = True
    return {key: value for key, value in out.items() if value is not None}


def save_config(start: Start, folder: Path, extra: Mapping[str, Any] | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(flat_config(start, extra), indent=2) + "\n")


def save_full(start: Start, folder: Path, state: Mapping[str, Tensor], extra: Mapping[str, Any] | None = None) -> None:
    """A folder like ``liuhaotian/llava-v1.5-7b``; the tower is in it only where the run began or trained its own."""
    save_config(start, folder, extra)
    rows = vocabulary(start.model.config)
    out = {}
    for name, value in state.items():
        if name.startswith(TOWER) and not start.own_tower:
            continue
        whole = name.endswith(("embed_tokens.weight", "lm_head.weight"))
        out[original_name(name)] = (value[:rows] if whole else value).detach().cpu().contiguous().clone()
    save_torch_state_dict(out, folder, metadata={"format": "pt"})
    start.model.generation_config.save_pretrained(folder)
    save_tokenizer(start, folder)


def save_tokenizer(start: Start, folder: Path) -> None:
    """The files of the tokenizer as they came, without what loading adds, but with the longest length of the training;
    where there are none, as it is now."""
    found = [start.files / name for name in _TOKENIZER if (start.files / name).exists()] if start.files else []
    for file in found:
        shutil.copyfile(file, folder / file.name)
    if not found:
        start.tokenizer.save_pretrained(folder)
    longest, settings = getattr(start.model.config, "tokenizer_model_max_length", None), folder / _TOKENIZER_CONFIG
    if found and longest and settings.exists():
        values = read_config(folder, settings.name) | {"model_max_length": longest}
        settings.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def save_processors(start: Start, folder: Path) -> None:
    """What stock ``AutoProcessor`` reads: the tokenizer, and what makes pixels of pictures as the training did."""
    # A tokenizer saves what it was made with, and the original layout's was made without a word about this.
    start.tokenizer.init_kwargs["padding_side"] = start.tokenizer.padding_side
    start.tokenizer.save_pretrained(folder)
    config, pictures, kind = start.model.config, start.image_processor, LlavaProcessor
    if config.model_type == "llava_next":
        pictures, kind = _like(LlavaNextImageProcessorPil, pictures, config), LlavaNextProcessor
    elif getattr(config, "image_aspect_ratio", None) == "pad":
        pictures = _like(LlavaImageProcessorPil, pictures, config)
    pictures.save_pretrained(folder)
    kind(
        image_processor=pictures,
        tokenizer=start.tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=1,  # CLIP's CLS token
        chat_template=start.tokenizer.chat_template,
    ).save_pretrained(folder)


def _like(kind: type, pictures: Any, config: Any) -> Any:
    """An image processor that pads, or cuts tiles, by itself, for one to which LLaVA gives squares."""
    own = {"image_grid_pinpoints": getattr(config, "image_grid_pinpoints", None), "do_pad": True}
    left_out = {"image_processor_type", *own}
    settings = {key: value for key, value in pictures.to_dict().items() if key not in left_out}
    return kind(**settings, **{key: value for key, value in own.items() if value is not None})


# ---------------------------------------------------------------------------------------------------------------
# Adapters: only what was trained


def trained(model: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The trained entries of a state dict, on the host, and the projector, which a language model as base lacks."""
    known = model.named_parameters()
    names = [name for name, parameter in known if parameter.requires_grad or name.startswith(PROJECTOR_KEYS)]
    return {name: state[name].detach().cpu().contiguous().clone() for name in names}


def save_adapter(start: Start, folder: Path, parts: Mapping[str, Tensor], extra: Mapping[str, Any]) -> None:
    """What was trained, for ``load_pretrained_model`` with a ``model_base``.

    Projector-only: mm_projector.bin. LoRA: adapter_config.json, adapter_model.safetensors, and what else was trained
    in non_lora_trainables.bin. All under the names of the original layout.
    """
    save_config(start, folder, extra)
    updates = {name: value for name, value in parts.items() if ".lora_" in name}
    others = {original_name(name): value for name, value in parts.items() if name not in updates}
    if start.mode == ADAPTER:
        torch.save(others, folder / PROJECTOR)
        return
    config = next(iter(start.model.model.language_model.peft_config.values()))
    config.base_model_name_or_path = start.base
    config.save_pretrained(folder)
    save_file({_lora_name(name): value for name, value in updates.items()}, folder / LORA_WEIGHTS, {"format": "pt"})
    torch.save({_PREFIX + name: value for name, value in others.items()}, folder / TRAINABLES)


def load_adapter(start: Start, folder: Path) -> None:
    """Go on from ``save_adapter``: exact, every trained parameter.

    Raises:
        ValueError: the folder holds other parameters than this run trains.
    """
    if kind_of(folder) != start.mode:
        raise ValueError(f"{folder} is of a {kind_of(folder)} run, this one is {start.mode}: use another output_dir")
    if start.mode == ADAPTER:
        parts = read_parts(folder / PROJECTOR)
    else:
        parts = read_parts(folder / TRAINABLES)
        parts |= {_own_lora_name(name): value for name, value in load_file(folder / LORA_WEIGHTS).items()}
    wanted = {name: parameter for name, parameter in start.model.named_parameters() if parameter.requires_grad}
    parts = {name: part for name, part in parts.items() if name in wanted or not name.startswith(PROJECTOR_KEYS)}
    if strange := set(wanted) ^ set(parts):
        raise ValueError(
            f"{folder} is of a run that trained other parts ({sorted(strange)[0]}): use another output_dir"
        )
    with torch.no_grad():
        for name, parameter in wanted.items():
            if parameter.shape != parts[name].shape:
                raise ValueError(f"{folder} holds {name} of another shape: use another output_dir")
            parameter.copy_(parts[name])


def others(folder: Path, mode: str) -> list[Path]:
    """Weights in a folder that is to hold a run of this mode, saved there in another form: loading would take both."""
    own = {FULL: (_WHOLE,), ADAPTER: (PROJECTOR,), LORA_MODE: (LORA, LORA_WEIGHTS, TRAINABLES)}
    return [file for kind, names in own.items() if kind != mode for name in names for file in folder.glob(name)]


def kind_of(folder: Path) -> str:
    """The mode of the run that wrote a checkpoint."""
    return ADAPTER if (folder / PROJECTOR).exists() else LORA_MODE if (folder / LORA).exists() else FULL


def _lora_name(name: str) -> str:
    return _PREFIX + original_name(name.replace(".default.weight", ".weight"))


def _own_lora_name(name: str) -> str:
    short = name.removeprefix(f"{_PREFIX}model.").replace(".weight", ".default.weight")
    return f"model.language_model.{short}"


@torch.no_grad()
def merged(start: Start, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with the low-rank updates added to the weights, under the names that these have without LoRA."""
    if start.mode != LORA_MODE:
        return dict(state)
    scale = lora_scale(start)
    out = {name.replace(".base_layer.", "."): value for name, value in state.items() if ".lora_" not in name}
    for name, down in state.items():
        if ".lora_A." not in name:
            continue
        module = name.partition(".lora_A.")[0]
        up, target = state[name.replace(".lora_A.", ".lora_B.")], f"{module}.weight"
        update = (up.float() @ down.float()) * scale
        out[target] = (out[target].float() + update.to(out[target].device)).to(out[target].dtype)
    return out


def lora_scale(start: Start) -> float:
    config = next(iter(start.model.model.language_model.peft_config.values()))
    return config.lora_alpha / (config.r**0.5 if config.use_rslora else config.r)
