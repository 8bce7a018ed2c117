"""``load_pretrained_model`` with the signature of the LLaVA-NeXT repository, for every family of this project."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from safetensors import SafetensorError
from transformers import PretrainedConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

from llava.model import builder as llava_builder
from llava.model.builder import _options, best_device, default_dtype, leave_unpacked
from llava.model.formats import is_original, load_stock_tokenizer, local_folder, quiet, read_config
from llava_next.model.formats import check_weights, load_original, original_family
from llava_next.model.language_model.llava_next_video import LlavaNextVideoForConditionalGeneration
from llava_next.model.language_model.llava_onevision import LlavaOnevisionForConditionalGeneration
from llava_next.model.language_model.video_llava import VideoLlavaForConditionalGeneration
from llava_next.model.next_video import load_next_video
from llava_next.tokens import NEXT_VIDEO, ONEVISION, VIDEO_LLAVA

logger = logging.getLogger(__name__)
MODELS = {
    ONEVISION: LlavaOnevisionForConditionalGeneration,
    NEXT_VIDEO: LlavaNextVideoForConditionalGeneration,
    VIDEO_LLAVA: VideoLlavaForConditionalGeneration,
}
PROCESSORS = {
    ONEVISION: LlavaOnevisionImageProcessorPil,
    NEXT_VIDEO: LlavaNextImageProcessorPil,
    VIDEO_LLAVA: CLIPImageProcessorPil,
}
LLAVA = "llava"  # LLaVA-1.5 and 1.6, which package llava loads
_DTYPE, _CONTEXT = "float16", 2048


@quiet()
def load_pretrained_model(
    model_path: str,
    model_base: str | None,
    model_name: str,
    load_8bit: bool = False,
    load_4bit: bool = False,
    device_map: Any = "auto",
    torch_dtype: Any = _DTYPE,
    attn_implementation: str | None = "flash_attention_2",
    customized_config: Any = None,
    overwrite_config: dict[str, Any] | None = None,
    **kwargs: Any,
) -> tuple[Any, Any, Any, int]:
    """Load a checkpoint of any family: (tokenizer, model, image_processor, context_len).

    LLaVA-1.5 and 1.6 go to ``llava.model.builder``; LLaVA-OneVision, LLaVA-NeXT-Video and Video-LLaVA are loaded here,
    in the layout of transformers and in their original ones (lmms-lab, LanguageBind). What a folder holds is read from
    its config.json, never from its name. ``model.config.MoB_config`` is a dict afterwards, from config.json or empty
    (off).

    Args:
        model_path: a folder, or a name on the hub.
        model_base: for adapters of LLaVA-1.5 and 1.6; the other families have none here.
        model_name: kept for compatibility.
        load_8bit, load_4bit: quantise with bitsandbytes.
        torch_dtype: "float16" becomes float32 on a CPU, which has no fast float16; any other value is kept.
        attn_implementation: FlashAttention-2 where it is installed, else SDPA with a note; "sdpa", "eager".
        customized_config: used instead of the folder's config.json: a config object, a dict, a config.json, or a
            folder that holds one.
        overwrite_config: keys that replace those of config.json; a dict within is merged into the one there.
        kwargs: for ``from_pretrained``; also ``device`` ("cuda", "mps", "cpu"; where "cuda" is not there, the best that
            is), ``vision_tower`` and ``MoB_config`` as in ``llava.model.builder``, and ``multimodal``, which changes
            nothing: every checkpoint here is.

    Raises:
        ValueError: a folder, a layout or an option that cannot be loaded; the message says what to do.
    """
    kwargs.pop("multimodal", None)
    device = best_device(kwargs.pop("device", None) or "cuda")
    kwargs["torch_dtype"] = _dtype(torch_dtype, device)
    flash = attn_implementation == "flash_attention_2"
    if attn_implementation and not flash:
        kwargs["attn_implementation"] = attn_implementation
    path = local_folder(model_path)
    stored = read_config(path)
    raw = changed_config(stored, customized_config, overwrite_config)
    kind = family(raw)
    if kind == LLAVA:
        with _folder_with(path, raw if raw != stored else None) as folder:
            tokenizer, model, image_processor, _ = llava_builder.load_pretrained_model(
                str(folder), model_base, model_name, load_8bit, load_4bit, device_map, device, flash, **kwargs
            )
        model.config._name_or_path = str(path)
        return tokenizer, model, image_processor, context_length(model.config)
    if model_base is not None:
        raise ValueError(f"model_base={model_base!r}: adapters are merged for LLaVA-1.5 and 1.6 only, not for {kind}")
    options = _options(load_8bit, load_4bit, device_map, device, flash, kwargs)
    try:
        original = load_next_video if kind == NEXT_VIDEO else load_original
        load = original if is_original(raw) else _load_stock
        tokenizer, model, image_processor = load(path, raw, **options)
    except (OSError, SafetensorError, UnpicklingError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"the files in {path} cannot be loaded ({reason}): download them again") from error
    model.eval()
    leave_unpacked(model)
    return tokenizer, model, image_processor, context_length(model.config)


def family(raw: dict[str, Any]) -> str:
    """Which family a config.json describes: a key of ``MODELS``, or "llava" for what package llava loads.

    Raises:
        ValueError: none of them.
    """
    if is_original(raw):
        return original_family(raw) or LLAVA
    kind = raw.get("model_type")
    if kind in MODELS:
        return kind
    if kind in llava_builder.MODELS:
        return LLAVA
    known = ", ".join([*llava_builder.MODELS, *MODELS])
    raise ValueError(f"the folder holds a model of type {kind!r}: this loader reads {known}")


def changed_config(raw: dict[str, Any], custom: Any = None, overwrite: dict[str, Any] | None = None) -> dict[str, Any]:
    """config.json as the user wants it; see ``load_pretrained_model``."""
    if isinstance(custom, PretrainedConfig):
        raw = custom.to_dict()
    elif isinstance(custom, dict):
        raw = custom
    elif custom is not None:
        place = Path(custom)
        raw = read_config(place.parent if place.name == "config.json" else place)
    return _merged(raw, overwrite or {})


def context_length(config: Any) -> int:
    """How many tokens the model may be given, by the first that the config names."""
    for name in ("max_sequence_length", "max_position_embeddings", "tokenizer_model_max_length"):
        for place in (config, config.text_config):
            if isinstance(value := getattr(place, name, None), int):
                return value
    return _CONTEXT


def _dtype(wanted: Any, device: str) -> Any:
    if wanted not in (None, _DTYPE):
        return wanted
    best = default_dtype(device)
    if wanted == _DTYPE and str(best) != f"torch.{_DTYPE}":
        logger.info("%s has no fast %s: loading in %s", device, wanted, str(best).removeprefix("torch."))
    return best


def _merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    out = dict(old)
    for key, value in new.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = _merged(out[key], value) if both else value
    return out


@contextmanager
def _folder_with(path: Path, config: dict[str, Any] | None) -> Iterator[Path]:
    """The folder; or, where config.json is to say something else, a folder of links to its files for the time being."""
    if config is None:
        yield path
        return
    with tempfile.TemporaryDirectory() as name:
        for file in path.iterdir():
            if file.name != "config.json":
                (Path(name) / file.name).symlink_to(file.resolve())
        (Path(name) / "config.json").write_text(json.dumps(config))
        yield Path(name)


def _load_stock(path: Path, raw: dict[str, Any], vision_tower: str | None = None, **options: Any):
    """A folder in the layout of transformers."""
    kind = raw["model_type"]
    tokenizer = load_stock_tokenizer(path)
    config = MODELS[kind].config_class.from_dict(raw)
    # What does not fit is refused below, with names.
    model, info = MODELS[kind].from_pretrained(
        path, config=config, output_loading_info=True, ignore_mismatched_sizes=True, **options
    )
    check_weights(path, info | {"unexpected_keys": ()})  # transformers names them, and nothing depends on them
    return tokenizer, model, PROCESSORS[kind].from_pretrained(path)
