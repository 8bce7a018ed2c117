"""LLaVA-NeXT-Video in the layout of its original repository (``lmms-lab/LLaVA-NeXT-Video-*``), into the stock class.

Such a folder is a LLaVA-1.6 (CLIP tower, tiles, ``image_newline``) whose config.json also says how each frame of a
video is pooled: ``mm_spatial_pool_mode`` and ``mm_spatial_pool_stride``. transformers' class pools the features of the
tower, before the projector, and puts no newline after a video; whatever means something else is refused.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from transformers import CLIPVisionConfig, LlavaNextConfig, LlavaNextVideoConfig
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from llava.model.formats import (
    KEYS,
    TOWER,
    check_weights,
    fill_tower,
    holds_tower,
    load_image_processor,
    load_tokenizer,
    tower_folder,
    translate_config,
)
from llava_next.model.formats import POOLS, add_places, fit_vocabulary, keep
from llava_next.model.language_model.llava_next_video import LlavaNextVideoForConditionalGeneration

logger = logging.getLogger(__name__)
# transformers' own conversion of the published checkpoints drops a level "vision_resampler" before the projector.
NEXT_VIDEO_KEYS = {
    r"^model\.(?:vision_resampler\.)?mm_projector\.0": "model.multi_modal_projector.linear_1",
    r"^model\.(?:vision_resampler\.)?mm_projector\.2": "model.multi_modal_projector.linear_2",
} | {pattern: name for pattern, name in KEYS.items() if "mm_projector" not in pattern}
_MODE, _STRIDE = "average", 2  # of the published checkpoints: 24 x 24 patches become 12 x 12
_COPIED = """vision_config text_config image_token_index projector_hidden_act vision_feature_layer
    vision_feature_select_strategy image_grid_pinpoints image_seq_length tie_word_embeddings""".split()  # noqa: SIM905


def load_next_video(path: Path, raw: dict[str, Any], vision_tower: str | None = None, **options: Any):
    """(tokenizer, model, image processor) of a LLaVA-NeXT-Video in the original layout.

    Args:
        vision_tower: replaces the config's ``mm_vision_tower`` (a hub name or a folder); its weights are used where the
            checkpoint has none of its own.
        options: for ``from_pretrained`` (dtype, device_map, ...).

    Raises:
        ValueError: parts that transformers' class cannot hold, or weights that are missing or left over.
    """
    inside = holds_tower(path)
    tower = tower_folder(path, raw, vision_tower, settings_only=inside)
    config = next_video_config(raw, CLIPVisionConfig.from_pretrained(tower))
    tokenizer = load_tokenizer(path, raw)
    add_places(tokenizer)
    model, info = LlavaNextVideoForConditionalGeneration.from_pretrained(
        path,
        config=config,
        key_mapping=NEXT_VIDEO_KEYS,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        **options,
    )
    # transformers remembers the mapping and would save in the original layout, under a config that is not.
    model.__dict__.pop("_weight_conversions", None)
    check_weights(path, info, optional=() if inside else (TOWER,))
    fill_tower(model, tower, info["missing_keys"])
    fit_vocabulary(model, tokenizer)
    views = load_image_processor(tower)
    same = {name: getattr(views, name) for name in ("image_mean", "image_std", "resample")}
    processor = LlavaNextImageProcessorPil(
        size=dict(views.size), crop_size=dict(views.crop_size), image_grid_pinpoints=config.image_grid_pinpoints, **same
    )
    return tokenizer, model, processor


def next_video_config(raw: dict[str, Any], vision: CLIPVisionConfig) -> LlavaNextVideoConfig:
    """The stock config that means the same as an original one. ValueError where there is none."""
    _check_pooling(raw, vision)
    pictures = translate_config(raw, vision)
    if not isinstance(pictures, LlavaNextConfig):
        merge, aspect = raw.get("mm_patch_merge_type"), raw.get("image_aspect_ratio")
        raise ValueError(
            f"mm_patch_merge_type={merge!r} with image_aspect_ratio={aspect!r}: transformers' LLaVA-NeXT-Video knows "
            "only spatial_unpad with anyres; if you need no pictures, give both in overwrite_config"
        )
    config = LlavaNextVideoConfig(
        **{name: getattr(pictures, name) for name in _COPIED},
        video_token_index=pictures.image_token_index + 1,
        spatial_pool_mode=_given(raw, "mm_spatial_pool_mode", _MODE),
        spatial_pool_stride=_given(raw, "mm_spatial_pool_stride", _STRIDE),
    )
    config.mm_patch_merge_type = raw["mm_patch_merge_type"]  # says by which rule the padding of tiles is cut
    return keep(raw, config)


def _given(raw: dict[str, Any], key: str, usual: Any) -> Any:
    if raw.get(key) is None:
        logger.warning("config.json has no %s: taking %r, as in the published LLaVA-NeXT-Video", key, usual)
        return usual
    return raw[key]


def _check_pooling(raw: dict[str, Any], vision: CLIPVisionConfig) -> None:
    """ValueError for what transformers' class cannot do to the frames of a video."""
    weights: dict[str, tuple[Any, ...]] = {
        "mm_resampler_type": ("spatial_pool",),
        "mm_spatial_pool_out_channels": (vision.hidden_size,),
    }
    rules: dict[str, tuple[Any, ...]] = {
        "mm_spatial_pool_mode": POOLS,
        "mm_pooling_position": ("before",),
        "mm_newline_position": ("no_token",),
        "patchify_video_feature": (False,),
        "add_faster_video": (False,),
    }
    for key, known in (weights | rules).items():
        if raw.get(key) is not None and raw[key] not in known:
            remedy = f"; if you need no videos, load it with overwrite_config={{{key!r}: {known[0]!r}}}"
            raise ValueError(
                f"{key}={raw[key]!r}: transformers' LLaVA-NeXT-Video knows only {', '.join(map(repr, known))}"
                + (remedy if key in rules else "")
            )
    side, stride = vision.image_size // vision.patch_size, raw.get("mm_spatial_pool_stride")
    if stride is not None and (type(stride) is not int or not 1 <= stride <= side):
        raise ValueError(f"mm_spatial_pool_stride={stride!r}: give an integer from 1 to {side}, the patches of a row")
