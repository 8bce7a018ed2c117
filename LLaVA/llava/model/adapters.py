"""Folders that hold only what training changed, on top of a base model (``model_base``): LoRA, or a projector.

They name modules as the original repository does, on a language model that is all there is: the text half of ours.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPVisionConfig

from llava.model.formats import (
    KEYS,
    TOWER,
    check_weights,
    fill_tower,
    fit_vocabulary,
    from_original,
    load_image_processor,
    load_tokenizer,
    read_config,
    stored_names,
    tower_folder,
    translate_config,
)

LORA, TRAINABLES, PROJECTOR = "adapter_config.json", "non_lora_trainables.bin", "mm_projector.bin"
_OURS = "model.multi_modal_projector."


def is_adapter(path: Path) -> bool:
    """Whether a folder is of no use without a base model: a LoRA's, or one with a projector and no model beside it.

    The published LLaVA-1.5 folders hold a whole model and, beside it, the projector that its training began with.
    """
    return (path / LORA).exists() or ((path / PROJECTOR).exists() and not stored_names(path))


def load_on_base(path: Path, base: Path, vision_tower: str | None = None, **kwargs: Any):
    """(tokenizer, model, image processor) of a LoRA or projector-only folder, merged into its base model.

    Args:
        path: holds config.json and either adapter_config.json (with non_lora_trainables.bin) or mm_projector.bin.
        base: the language model (``lmsys/vicuna-7b-v1.5``), or an original LLaVA.
        vision_tower, kwargs: see ``load_original``.

    Raises:
        ValueError: the folders do not fit together, or what they hold cannot be merged.
    """
    raw = read_config(path)
    raw_base = read_config(base)
    if "text_config" in raw_base:
        raise ValueError(f"{base} is in the layout of transformers: give the model that the adapter was trained on")
    parts = _changed(path)
    tower = tower_folder(path, raw, vision_tower)
    tokenizer = load_tokenizer(base, raw)
    config = translate_config(raw | {"vocab_size": raw_base["vocab_size"]}, CLIPVisionConfig.from_pretrained(tower))
    model, info = from_original(base, config, **kwargs)
    absent = (TOWER, _OURS, "model.image_newline")
    check_weights(base, info, optional=absent)
    missing = set(info["missing_keys"]) - set(parts)
    if lost := sorted(key for key in missing if key.startswith(absent[1:])):
        raise ValueError(f"neither {path} nor {base} has {lost[0]}: the adapter is incomplete, download it again")
    fill_tower(model, tower, missing)
    overwrite(model, parts, path)
    if (path / LORA).exists():
        _merge(model, path)
    fit_vocabulary(model, tokenizer)
    return tokenizer, model, load_image_processor(tower)


def _changed(path: Path) -> dict[str, Tensor]:
    """Whole tensors of an adapter folder, under our names."""
    file = path / (TRAINABLES if (path / LORA).exists() else PROJECTOR)
    if not is_adapter(path) and stored_names(path):
        raise ValueError(f"{path} holds a whole model: leave model_base out")
    if not file.exists():
        raise ValueError(
            f"{path} has no {file.name}: with model_base, give a LoRA folder ({LORA} and {TRAINABLES}) or a projector "
            f"({PROJECTOR})"
        )
    return read_parts(file)


def read_parts(file: Path) -> dict[str, Tensor]:
    """The tensors of a mm_projector.bin or non_lora_trainables.bin, under our names."""
    state = _tensors(file)
    # Training wraps the model in PEFT or DeepSpeed, which leaves its marks on the names.
    names = {name: name.removeprefix("base_model.") for name in state}
    if any(name.startswith("model.model.") for name in names.values()):
        names = {name: short.removeprefix("model.") for name, short in names.items()}
    return {_rename(short): state[name] for name, short in names.items()}


def stored_projector(folder: Path) -> dict[str, Tensor]:
    """The projector in a folder of either layout, under our names; nothing else is read.

    Raises:
        ValueError: there are no weights, or no projector among them.
    """
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as weights:
            found |= {name: weights.get_tensor(name) for name in weights.keys() if _of_projector(name)}  # noqa: SIM118
    if not found:
        for file in sorted([*folder.glob("pytorch_model*.bin"), *folder.glob(PROJECTOR)]):
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            found |= {name: value.clone() for name, value in state.items() if _of_projector(name)}
    if not found:
        raise ValueError(f"{folder} holds no projector: give the folder of a LLaVA")
    # Whatever stands before them: folders of transformers have been written with several prefixes.
    return {_rename(f"model.{name[_of_projector(name).start() :]}"): value for name, value in found.items()}


_of_projector = re.compile(r"mm_projector\.|multi_modal_projector\.|image_newline").search


def _rename(name: str) -> str:
    for pattern, replacement in KEYS.items():
        if re.search(pattern, name):
            renamed = re.sub(pattern, replacement, name)
            return renamed.replace(f"{TOWER}vision_model.", TOWER)
    return name


def overwrite(model: Any, parts: dict[str, Tensor], path: Path) -> None:
    """Put whole tensors in place; a larger vocabulary first makes room. ValueError for what fits nowhere."""
    rows = max((len(parts[k]) for k in parts if k.endswith(("embed_tokens.weight", "lm_head.weight"))), default=0)
    if rows > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(rows, mean_resizing=False)
    own = model.state_dict()
    for name, value in parts.items():
        if name not in own or own[name].shape != value.shape:
            raise ValueError(
                f"{path} holds {name} of shape {tuple(value.shape)}, for which the base model has no place"
            )
        own[name].copy_(value)


def _merge(model: Any, path: Path) -> None:
    """Add the low-rank updates to the language model's weights."""
    try:
        import peft
    except ImportError as error:
        raise ValueError(f"{path} is a LoRA adapter, which needs PEFT to be merged: pip install peft") from error
    state = {name.replace("base_model.model.model.", "base_model.model."): v for name, v in _adapter(path).items()}
    if strange := sorted(name for name in state if not name.startswith("base_model.model.layers.")):
        raise ValueError(f"{path} adapts {strange[0]}: only adapters of the language model's layers can be merged")
    config = peft.LoraConfig.from_pretrained(path)
    config.task_type, config.inference_mode = None, False
    language = model.model.language_model
    wrapped = peft.get_peft_model(language, config)
    result = peft.set_peft_model_state_dict(wrapped, state)
    left = [name for name in result.missing_keys if "lora_" in name] + result.unexpected_keys
    if left:
        raise ValueError(f"the adapter in {path} does not fit its base model ({left[0]}): is model_base the right one?")
    model.model.language_model = wrapped.merge_and_unload()


def _adapter(path: Path) -> dict[str, Tensor]:
    for name in ("adapter_model.safetensors", "adapter_model.bin"):
        if (path / name).exists():
            return _tensors(path / name)
    raise ValueError(f"{path} has {LORA} but no adapter_model.safetensors or .bin: download it again")


def _tensors(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        return load_file(file)
    return torch.load(file, map_location="cpu", weights_only=True)
