"""``load_pretrained_model`` with the original signature, for folders of transformers and of the original repository."""

from __future__ import annotations

import logging
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import BitsAndBytesConfig
from transformers.utils import is_bitsandbytes_available, is_flash_attn_2_available

from llava.model.adapters import is_adapter, load_on_base
from llava.model.formats import (
    MODELS,
    check_weights,
    is_original,
    load_image_processor,
    load_original,
    load_stock_tokenizer,
    local_folder,
    quiet,
    read_config,
)

logger = logging.getLogger(__name__)
_CONTEXT = 2048


@quiet()
def load_pretrained_model(
    model_path: str,
    model_base: str | None,
    model_name: str,
    load_8bit: bool = False,
    load_4bit: bool = False,
    device_map: Any = "auto",
    device: str = "cuda",
    use_flash_attn: bool = False,
    **kwargs: Any,
) -> tuple[Any, Any, Any, int]:
    """Load a LLaVA-1.5 or LLaVA-1.6 checkpoint: (tokenizer, model, image_processor, context_len).

    ``model.config.MoB_config`` is a dict afterwards, from config.json or empty (off); what it says at each call is
    what the model does. The layout is recognised by the folder, not by ``model_name``.

    Args:
        model_path: a folder or a hub name, in the layout of transformers (llava-hf) or of the original (liuhaotian).
        model_base: the language model under a LoRA or projector-only folder, which are merged into it.
        model_name: kept for compatibility; prompts are chosen by it (``llava.conversation.conv_mode_for``).
        load_8bit, load_4bit: quantise with bitsandbytes.
        device: "cuda", "mps" or "cpu"; where "cuda" is not there, the best that is.
        use_flash_attn: FlashAttention-2 where it is installed, else SDPA with a note.
        kwargs: for ``from_pretrained``; ``torch_dtype`` replaces the default, float16 on accelerators and float32 on
            CPUs; ``vision_tower`` replaces the tower that an original config names; ``MoB_config`` sets the pruning.

    Raises:
        ValueError: a folder, a layout or an option that cannot be loaded; the message says what to do.
    """
    device = best_device(device)
    options = _options(load_8bit, load_4bit, device_map, device, use_flash_attn, kwargs)
    path = local_folder(model_path)
    raw = read_config(path)
    try:
        if model_base is not None:
            tokenizer, model, image_processor = load_on_base(path, local_folder(model_base), **options)
        elif is_adapter(path):
            raise ValueError(f"{path} holds an adapter only: give model_base, the model that it was trained on")
        elif is_original(raw):
            tokenizer, model, image_processor = load_original(path, raw, **options)
        else:
            options.pop("vision_tower", None)
            tokenizer, model, image_processor = _load_stock(path, raw, options)
    except (OSError, SafetensorError, UnpicklingError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"the files in {path} cannot be loaded ({reason}): download them again") from error
    model.eval()
    leave_unpacked(model)
    if getattr(model.config, "MoB_config", None) is None:
        model.config.MoB_config = {}
    context = getattr(model.config, "max_sequence_length", _CONTEXT)
    return tokenizer, model, image_processor, min(context, model.config.text_config.max_position_embeddings)


def best_device(wanted: str = "cuda") -> str:
    """The device asked for, or where CUDA is asked for and missing, mps or cpu.

    Raises:
        ValueError: there is no such device.
    """
    kind = wanted.split(":")[0]
    if kind not in ("cuda", "mps", "cpu") or (kind == "mps" and not torch.backends.mps.is_available()):
        raise ValueError(f"device {wanted!r} is not there: use cuda, mps or cpu, or leave it out for the best there is")
    if kind != "cuda" or torch.cuda.is_available():
        return wanted
    found = "mps" if torch.backends.mps.is_available() else "cpu"
    logger.info("no CUDA device: running on %s", found)
    return found


def default_dtype(device: str) -> torch.dtype:
    """float16 on accelerators, as the checkpoints are stored; float32 on CPUs, which have no fast float16."""
    return torch.float32 if device.startswith("cpu") else torch.float16


def _options(
    load_8bit: bool, load_4bit: bool, device_map: Any, device: str, use_flash_attn: bool, extra: dict[str, Any]
) -> dict[str, Any]:
    """Keyword arguments of ``from_pretrained``."""
    options = dict(extra)
    options["device_map"] = device_map if device == "cuda" else {"": device}
    options["dtype"] = options.pop("torch_dtype", None) or options.pop("dtype", None) or default_dtype(device)
    if load_8bit or load_4bit:
        if not is_bitsandbytes_available():
            raise ValueError("load_8bit and load_4bit need bitsandbytes: pip install bitsandbytes")
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_8bit=load_8bit,
            load_in_4bit=load_4bit and not load_8bit,
            bnb_4bit_compute_dtype=torch.float16,
            bnb_4bit_use_double_quant=True,
            bnb_4bit_quant_type="nf4",
            # The tower may come from another folder, and quantising it saves little.
            llm_int8_skip_modules=["model.vision_tower", "model.multi_modal_projector", "lm_head"],
        )
    if use_flash_attn:
        if is_flash_attn_2_available():
            options["attn_implementation"] = "flash_attention_2"
        else:
            logger.warning("flash-attn is not installed (pip install flash-attn): using SDPA")
    return options


def leave_unpacked(model: Any) -> None:
    """Let 4-bit layers whose widths do not fit bitsandbytes' packing run as they are.

    On CPUs with AVX512-BF16 it packs every layer anew in the first pass, and fails (0.50) where the output is no
    multiple of 32, or the input none of the block's 64.
    """
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False) and (
            module.out_features % 32 or module.in_features % 64
        ):
            module.support_avx512bf16_for_cpu = False


def _load_stock(path: Path, raw: dict[str, Any], options: dict[str, Any]) -> tuple[Any, Any, Any]:
    """A folder in the layout of transformers."""
    kind = raw.get("model_type")
    if kind not in MODELS:
        raise ValueError(f"{path} holds a model of type {kind!r}: this loader reads {', '.join(MODELS)}")
    tokenizer = load_stock_tokenizer(path)
    model, info = MODELS[kind].from_pretrained(path, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    check_weights(path, info)
    return tokenizer, model, load_image_processor(path)
