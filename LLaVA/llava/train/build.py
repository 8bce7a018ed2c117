"""What a run starts from: a language model with a vision tower, or any LLaVA."""

from __future__ import annotations

import contextlib
import logging
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, CLIPVisionConfig
from transformers.integrations import deepspeed as hf_deepspeed
from transformers.utils import is_bitsandbytes_available, is_flash_attn_2_available

from llava.mm_utils import get_model_name_from_path, read_pinpoints
from llava.model.adapters import PROJECTOR, is_adapter, overwrite, read_parts, stored_projector
from llava.model.builder import load_pretrained_model
from llava.model.formats import (
    TOWER,
    check_weights,
    fill_tower,
    fit_vocabulary,
    from_original,
    holds_tower,
    is_original,
    load_image_processor,
    load_tokenizer,
    local_folder,
    quiet,
    read_config,
    tower_folder,
    translate_config,
)
from llava.train.arguments import ORIGINAL, DataArguments, ModelArguments, TrainingArguments
from llava.train.trainable import FULL, PROJECTOR_KEYS, choose_trainable

logger = logging.getLogger(__name__)

_LANGUAGE_MODELS = ("llama", "mistral")
# What LLaVA-1.5 was made with, where a config of the original layout does not say it.
_MADE = {"mm_vision_select_layer": -2, "mm_vision_select_feature": "patch", "mm_use_im_start_end": False}
_TOWER_SIZES = ("image_size", "patch_size", "hidden_size", "num_hidden_layers")


@dataclass
class Start:
    """A model to train, with what belongs to it.

    Attributes:
        tower: what ``mm_vision_tower`` is to say in a config of the original layout; None where nobody knows.
        own_tower: a full checkpoint holds the tower's weights.
        base: the model that an adapter belongs to; None where there is none on disk.
        files: folder with the tokenizer as it came.
        mode: "full", "projector" or "lora"; set by ``choose_trainable``.
    """

    tokenizer: Any
    model: Any
    image_processor: Any
    tower: str | None
    own_tower: bool
    base: str | None
    files: Path | None
    mode: str = FULL


def prepare(model_args: ModelArguments, data_args: DataArguments, args: TrainingArguments) -> Start:
    """Load the model, choose what is trained, and check that the result can be saved as it is asked for.

    Raises:
        ValueError: a folder, layout or option that cannot be used.
    """
    path = local_folder(model_args.model_name_or_path)
    if Path(args.output_dir).resolve() == path.resolve():
        raise ValueError(f"--output_dir {args.output_dir} is the model that the run starts from: choose another one")
    raw = read_config(path)
    if args.bits < 16 and "vision_config" in raw:
        raise ValueError(
            f"--bits {args.bits}: {path} is in the layout of transformers, and an adapter, all that 4 and 8 bits give, "
            "needs a base in the original one: start from a liuhaotian/* folder, or a language model and --vision_tower"
        )
    options = _options(args, model_args)
    with _whole_weights(args), quiet():
        if "vision_config" in raw or model_args.model_base or is_adapter(path):
            start = _ready(path, model_args, data_args, options)
        else:
            start = _assemble(path, raw, model_args, data_args, options)
    start.tokenizer.padding_side = "left"  # for those who generate with what is saved; the collator pads by itself
    start.tokenizer.model_max_length = args.model_max_length
    config = start.model.config
    config.tokenizer_model_max_length, config.tokenizer_padding_side = args.model_max_length, "right"
    generation = start.model.generation_config
    if not generation.do_sample and (generation.temperature or generation.top_p):
        generation.do_sample = True  # or it could not be saved: Vicuna's says how to sample, but not to do it
    start.mode = choose_trainable(start.model, model_args, args)
    start.own_tower |= any(p.requires_grad for p in start.model.model.vision_tower.parameters())
    if args.save_format == ORIGINAL and start.tower is None:
        raise ValueError("--save_format original: its config.json must name the vision tower, add --vision_tower")
    if args.save_format == ORIGINAL and start.mode != FULL and start.base is None:
        raise ValueError(
            f"--save_format original: an adapter needs its base model, and {path} is in the layout of transformers or "
            "an adapter itself; use --save_format hf"
        )
    return start


@contextlib.contextmanager
def _whole_weights(args: TrainingArguments) -> Iterator[None]:
    """Keep ZeRO-3 from splitting weights while they are loaded and put together; the engine splits them afterwards.

    Every process holds the model in host memory for that long, in the precision that it is trained in.
    """
    config = getattr(args, "hf_deepspeed_config", None)
    if config is None:
        yield
        return
    hf_deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        hf_deepspeed.set_hf_deepspeed_config(config)


def _options(args: TrainingArguments, model_args: ModelArguments) -> dict[str, Any]:
    """Keyword arguments of ``from_pretrained``."""
    options: dict[str, Any] = {"dtype": storage_dtype(args, model_args)}
    attention = args.attn_implementation
    if attention == "flash_attention_2" and not is_flash_attn_2_available():
        logger.warning("flash-attn is not installed (pip install flash-attn): using SDPA")
        attention = None
    if attention:
        options["attn_implementation"] = attention
    if args.bits < 16:
        if not is_bitsandbytes_available():
            raise ValueError(f"--bits {args.bits} needs bitsandbytes: pip install bitsandbytes")
        options["device_map"] = {"": args.device}
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_8bit=args.bits == 8,
            load_in_4bit=args.bits == 4,
            llm_int8_skip_modules=["model.multi_modal_projector", "model.vision_tower", "lm_head"],
            bnb_4bit_compute_dtype=compute_dtype(args),
            bnb_4bit_use_double_quant=args.double_quant,
            bnb_4bit_quant_type=args.quant_type,
        )
    return options


def compute_dtype(args: TrainingArguments) -> torch.dtype:
    return torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32


def storage_dtype(args: TrainingArguments, model_args: ModelArguments) -> torch.dtype:
    """What weights are loaded in. Trained ones stay float32 but for DeepSpeed, which keeps its own copies of them."""
    if args.deepspeed:
        return compute_dtype(args)
    small = args.lora_enable or model_args.tune_mm_mlp_adapter or model_args.freeze_backbone
    return compute_dtype(args) if small and not args.fsdp else torch.float32


def _ready(path: Path, model_args: ModelArguments, data_args: DataArguments, options: dict[str, Any]) -> Start:
    """A LLaVA in the layout of transformers, or an adapter on its base, merged."""
    dtype = options.pop("dtype")
    tokenizer, model, image_processor, _ = load_pretrained_model(
        str(path),
        model_args.model_base,
        get_model_name_from_path(str(path)),
        device_map=options.pop("device_map", {"": "cpu"}),
        torch_dtype=dtype,
        **options,
    )
    config = model.config
    made = {
        "mm_vision_select_layer": config.vision_feature_layer,
        "mm_vision_select_feature": {"default": "patch", "full": "cls_patch"}[config.vision_feature_select_strategy],
        "mm_use_im_start_end": "<im_start>" in tokenizer.get_vocab(),
        "mm_patch_merge_type": "spatial_unpad" if getattr(config, "image_grid_pinpoints", None) else "flat",
    }
    _check_same(path, made, model_args)
    _check_pictures(path, config, model_args, data_args)
    if data_args.image_aspect_ratio:
        tiled = data_args.image_aspect_ratio.startswith("anyres")
        if tiled != bool(getattr(model.config, "image_grid_pinpoints", None)):
            raise ValueError(
                f"--image_aspect_ratio {data_args.image_aspect_ratio}: {path} holds a {model.config.model_type}, which "
                "treats pictures otherwise; start from the language model, or from an original LLaVA folder"
            )
        if not tiled:
            model.config.image_aspect_ratio = data_args.image_aspect_ratio
            if getattr(image_processor, "do_pad", False):  # one that pads by itself
                image_processor.do_pad = data_args.image_aspect_ratio == "pad"
    if model_args.pretrain_mm_mlp_adapter:
        _put_projector(model, model_args.pretrain_mm_mlp_adapter)
    return Start(tokenizer, model, image_processor, model_args.vision_tower, True, None, None)


def _check_same(path: Path, made: dict[str, Any], model_args: ModelArguments) -> None:
    """ValueError where a flag says another model than the finished one that is there."""
    for name, value in (made | {"mm_projector_type": "mlp2x_gelu"}).items():
        given = getattr(model_args, name)
        if given and given != value:
            raise ValueError(
                f"--{name} {given}: {path} was made with {value or 'none'}; leave the flag out, or start from the "
                "language model"
            )


def _check_pictures(path: Path, config: Any, model_args: ModelArguments, data_args: DataArguments) -> None:
    """The same for what a folder of transformers says of its tiles and its tower."""
    if data_args.image_grid_pinpoints:
        there = [(width, height) for height, width in getattr(config, "image_grid_pinpoints", None) or ()]
        points = pinpoints(data_args.image_grid_pinpoints, config.vision_config.image_size)
        if sorted(map(tuple, read_pinpoints(points))) != sorted(there):
            raise ValueError(f"--image_grid_pinpoints: {path} was made with {there or 'none'}; leave the flag out")
    if model_args.vision_tower:  # says what the one in the folder is, for a config of the original layout
        folder = tower_folder(path, {}, model_args.vision_tower, settings_only=True)
        named, own = CLIPVisionConfig.from_pretrained(folder), config.vision_config
        if other := [name for name in _TOWER_SIZES if getattr(named, name) != getattr(own, name)]:
            raise ValueError(
                f"--vision_tower {model_args.vision_tower}: its {other[0]} is {getattr(named, other[0])}, that of the "
                f"tower in {path} {getattr(own, other[0])}; leave the flag out, or name the tower it was made with"
            )


def _assemble(path: Path, raw: dict, model_args: ModelArguments, data_args: DataArguments, options: dict) -> Start:
    """A language model, or a LLaVA in the original layout, with tower and projector."""
    llava = is_original(raw)
    kind = raw.get("model_type")
    if not llava and kind not in _LANGUAGE_MODELS:
        raise ValueError(f"{path} holds a model of type {kind!r}: use a Llama or Mistral, or a LLaVA folder")
    if llava:
        _check_same(path, {name: raw.get(name) or value for name, value in _MADE.items()}, model_args)
    tiled, aspect = str(raw.get("image_aspect_ratio")).startswith("anyres"), data_args.image_aspect_ratio
    if llava and tiled and aspect and not aspect.startswith("anyres"):
        raise ValueError(f"--image_aspect_ratio {aspect}: {path} cuts pictures into tiles; leave the flag out")
    if not llava and not model_args.vision_tower:
        raise ValueError(f"{path} is a language model: add --vision_tower openai/clip-vit-large-patch14-336")
    own_tower = llava and holds_tower(path)  # then a given --vision_tower says what it is, not what it weighs
    named = model_args.vision_tower or raw.get("mm_vision_tower")
    tower = tower_folder(path, raw, model_args.vision_tower, settings_only=own_tower)
    vision = CLIPVisionConfig.from_pretrained(tower)
    described = raw | _multimodal(raw, model_args, data_args, vision)
    tokenizer = load_tokenizer(path, described)
    model, info = from_original(path, translate_config(described, vision), **options)
    check_weights(path, info, optional=(TOWER, *PROJECTOR_KEYS))
    missing = set(info["missing_keys"])
    given = _put_projector(model, model_args.pretrain_mm_mlp_adapter) if model_args.pretrain_mm_mlp_adapter else set()
    fresh = {key for key in missing - given if key.startswith(PROJECTOR_KEYS)}
    if llava and any(key.startswith(PROJECTOR_KEYS[0]) for key in fresh):
        raise ValueError(f"{path} has no projector: add --pretrain_mm_mlp_adapter, or download it again")
    _initialise(model, fresh)
    fill_tower(model, tower, missing)
    fit_vocabulary(model, tokenizer)
    return Start(
        tokenizer, model, load_image_processor(tower), named, own_tower, str(model_args.model_name_or_path), path
    )


def _multimodal(raw: dict, model_args: ModelArguments, data_args: DataArguments, vision: CLIPVisionConfig) -> dict:
    """The multimodal half of a flat config: flags first, then what the checkpoint says, then LLaVA-1.5's choices."""

    def pick(flag: Any, key: str, default: Any) -> Any:
        return flag if flag is not None else raw.get(key) or default

    layer, count = model_args.mm_vision_select_layer, vision.num_hidden_layers
    if layer is not None and not -count - 1 <= layer <= count:
        raise ValueError(
            f"--mm_vision_select_layer {layer}: the tower has {count} layers, give {-count - 1} to {count}"
        )
    aspect = pick(data_args.image_aspect_ratio, "image_aspect_ratio", "square")
    merge = "spatial_unpad" if aspect.startswith("anyres") else "flat"
    old = is_original(raw)
    out = {
        "mm_projector_type": pick(model_args.mm_projector_type, "mm_projector_type", "mlp2x_gelu"),
        **{name: pick(getattr(model_args, name), name, _MADE[name]) for name in list(_MADE)[:2]},
        "mm_patch_merge_type": model_args.mm_patch_merge_type or merge,
        "image_aspect_ratio": aspect,
        "mm_use_im_start_end": raw.get("mm_use_im_start_end", False) if old else model_args.mm_use_im_start_end,
        "mm_use_im_patch_token": raw.get("mm_use_im_patch_token", True) if old else model_args.mm_use_im_patch_token,
    }
    if data_args.image_grid_pinpoints and not aspect.startswith("anyres"):
        raise ValueError(
            f"--image_grid_pinpoints: {aspect} pictures are not cut into tiles; add --image_aspect_ratio anyres"
        )
    if aspect.startswith("anyres"):
        points = pick(data_args.image_grid_pinpoints, "image_grid_pinpoints", None)
        out["image_grid_pinpoints"] = pinpoints(points, vision.image_size)
    return out


def pinpoints(given: Any, side: int) -> Any:
    """``(1x1),...,(2x3)`` as the (width, height) list it stands for, in pixels; anything else as it is."""
    found = re.findall(r"\(?(\d+)\s*x\s*(\d+)\)?", given) if isinstance(given, str) else []
    if len(found) != 2:
        return given
    (a, b), (c, d) = ((int(x), int(y)) for x, y in found)
    if not (0 < a <= c and 0 < b <= d):
        raise ValueError(
            f"--image_grid_pinpoints {given}: name the smallest grid first and then the largest, as (1x1),...,(2x3)"
        )
    return [[x * side, y * side] for x in range(a, c + 1) for y in range(b, d + 1)]


def _put_projector(model: Any, given: str) -> set[str]:
    """Load a projector of the first stage; the names that it filled.

    ``given`` is its file or folder; where that stage saved a whole model instead, the projector is taken from there.
    """
    path = Path(given).expanduser()
    file = path / PROJECTOR if path.is_dir() else path
    if file.exists():
        parts = read_parts(file)
    elif file.name == PROJECTOR and file.parent.is_dir():
        parts = stored_projector(file.parent)
    else:
        raise ValueError(
            f"--pretrain_mm_mlp_adapter {given}: there is no such file; give the folder of the first stage"
        )
    overwrite(model, parts, path)
    return set(parts)


@torch.no_grad()
def _initialise(model: Any, fresh: set[str]) -> None:
    """A new projector as ``nn.Linear`` starts, a new row mark as an embedding."""
    if any(key.startswith(PROJECTOR_KEYS[0]) for key in fresh):
        for module in model.model.multi_modal_projector.modules():
            if isinstance(module, nn.Linear):
                module.reset_parameters()
    if "model.image_newline" in fresh:
        newline = model.model.image_newline
        newline.normal_(std=1 / math.sqrt(newline.numel()))
