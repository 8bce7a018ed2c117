"""Checkpoints in the layouts of the original repositories, loaded into stock classes.

``lmms-lab/llava-onevision-*`` (SigLIP tower inside) become LlavaOnevision, ``LanguageBind/Video-LLaVA`` (two towers
inside) becomes VideoLlava; for LLaVA-NeXT-Video see ``next_video``. Their configs are flat, their weights have other
names, and their tokenizers have no ``<image>`` and ``<video>``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaOnevisionConfig,
    Qwen2Config,
    Qwen2Tokenizer,
    SiglipVisionConfig,
    VideoLlavaConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

from llava.constants import DEFAULT_IMAGE_TOKEN, DEFAULT_VIDEO_TOKEN
from llava.model.formats import KEYS, load_tokenizer, local_folder, read_config, stored_names
from llava_next.model.language_model.llava_onevision import LlavaOnevisionForConditionalGeneration
from llava_next.model.language_model.video_llava import VideoLlavaForConditionalGeneration
from llava_next.tokens import NEXT_VIDEO, ONEVISION, VIDEO_LLAVA

VIDEO_KEYS = KEYS | {
    r"^model\.image_tower\.image_tower\.(?:vision_model\.)?": "model.image_tower.",
    r"^model\.video_tower\.video_tower\.(?:vision_model\.)?": "model.video_tower.",
}
# No class of transformers runs these: LanguageBind's attention over frames.
TEMPORAL = re.compile(r"\.temporal_")
# Weights that no feature depends on: features are taken before the tower's last norm, and SigLIP's pooling head and
# last layer are not part of the model (its original code deletes them after loading).
UNUSED = re.compile(r"_tower\.(.*\.)?(post_layernorm|head)\.")
BUFFERS = ("rotary_emb.inv_freq", "embeddings.position_ids")
_TEXT_KEYS = """
    vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads hidden_act
    max_position_embeddings initializer_range rms_norm_eps rope_theta rope_scaling attention_bias tie_word_embeddings
    use_sliding_window sliding_window max_window_layers bos_token_id eos_token_id pad_token_id
""".split()  # noqa: SIM905
_KEPT_KEYS = ("MoB_config", "max_sequence_length", "tokenizer_model_max_length")
_SELECT = {"patch": "default", "cls_patch": "full"}
POOLS = ("average", "max", "conv")  # what transformers' LLaVA-NeXT-Video can do to the features of a frame
_SO400M = "siglip-so400m-patch14-384"


def original_family(raw: dict[str, Any]) -> str | None:
    """The family of an original config.json that this package loads itself; None for the others."""
    if "mm_video_tower" in raw or "mm_image_tower" in raw:
        return VIDEO_LLAVA
    tower = str(raw.get("mm_vision_tower") or "")
    if "siglip" in tower.lower():
        return ONEVISION
    if Path(tower, "config.json").is_file() and "siglip" in str(read_config(tower).get("model_type")):
        return ONEVISION
    return NEXT_VIDEO if pools_videos(raw) else None


def pools_videos(raw: dict[str, Any]) -> bool:
    """Whether an original config.json, of a model with a CLIP tower, says how frames of videos are pooled.

    Not by ``mm_newline_position`` or a bilinear ``mm_spatial_pool_mode``: training wrote these defaults into the
    configs of models for pictures too.
    """
    said = (raw.get("mm_resampler_type"), raw.get("mm_spatial_pool_stride"))
    return any(said) or raw.get("mm_spatial_pool_mode") in POOLS


def load_original(path: Path, raw: dict[str, Any], vision_tower: str | None = None, **options: Any):
    """(tokenizer, model, image processor) of a folder in an original layout.

    Args:
        vision_tower: replaces the tower (hub name or folder) whose config.json says how large it is; its weights are
            in the checkpoint.
        options: for ``from_pretrained`` (dtype, device_map, ...).

    Raises:
        ValueError: parts that transformers has no class for, or weights that are missing or left over.
    """
    if raw.get("mm_projector_type") != "mlp2x_gelu":
        raise ValueError(f"mm_projector_type={raw.get('mm_projector_type')!r}: only mlp2x_gelu can be loaded")
    if original_family(raw) == VIDEO_LLAVA:
        return _load_video_llava(path, raw, vision_tower, options)
    return _load_onevision(path, raw, vision_tower, options)


# ---------------------------------------------------------------------------------------------------------------
# LLaVA-OneVision


def _load_onevision(path: Path, raw: dict[str, Any], vision_tower: str | None, options: dict[str, Any]):
    vision = _siglip(vision_tower or raw["mm_vision_tower"])
    config = onevision_config(raw, vision)
    tokenizer = Qwen2Tokenizer.from_pretrained(path)
    tokenizer.chat_template = None  # for text alone; the conversation "qwen_1_5" says the same with pictures
    add_places(tokenizer)
    tokenizer.pad_token = tokenizer.pad_token or "<|endoftext|>"
    model = _load(LlavaOnevisionForConditionalGeneration, path, config, KEYS, options)
    fit_vocabulary(model, tokenizer)
    size = {"height": vision.image_size, "width": vision.image_size}
    half = [0.5, 0.5, 0.5]  # SigLIP's, unlike CLIP's
    processor = LlavaOnevisionImageProcessorPil(
        size=size, image_mean=half, image_std=half, image_grid_pinpoints=config.image_grid_pinpoints
    )
    return tokenizer, model, processor


def onevision_config(raw: dict[str, Any], vision: SiglipVisionConfig) -> LlavaOnevisionConfig:
    """The stock config that means the same as an original one. ValueError where there is none."""
    if "Qwen" not in str(raw.get("architectures")):
        raise ValueError(f"architectures={raw.get('architectures')}: with a SigLIP tower only Qwen can be loaded")
    merge = raw.get("mm_patch_merge_type", "flat")
    if "unpad" not in merge:
        raise ValueError(f"mm_patch_merge_type={merge!r}: with a SigLIP tower only spatial_unpad can be loaded")
    for key, only in (("mm_newline_position", "one_token"), ("mm_spatial_pool_mode", "bilinear")):
        if raw.get(key, only) != only:
            raise ValueError(
                f"{key}={raw[key]!r}: transformers' class knows only {only!r}; if you need no videos, load it with "
                f"overwrite_config={{{key!r}: {only!r}}}"
            )
    text = Qwen2Config(**_given(raw))
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=text.vocab_size,
        video_token_index=text.vocab_size + 1,
        image_grid_pinpoints=pinpoints(raw.get("image_grid_pinpoints"), vision.image_size),
        vision_aspect_ratio=_aspect(raw.get("image_aspect_ratio")),
        vision_feature_layer=-1,  # of the layers that are left
        vision_feature_select_strategy="full",  # SigLIP has no CLS token
        tie_word_embeddings=text.tie_word_embeddings,
    )
    return keep(raw, config)


def pinpoints(given: Any, side: int) -> list[list[int]]:
    """Resolutions as transformers has them, (height, width) in pixels; the original has (width, height).

    A text "(1x1),...,(6x6)" means all combinations from the first to the last, in tiles of ``side`` pixels.
    """
    if isinstance(given, str):
        ends = [(int(a), int(b)) for a, b in re.findall(r"\((\d+)x(\d+)\)", given)]
        if ends:
            (a, b), (c, d) = ends[0], ends[-1]
            return [[j * side, i * side] for i in range(a, c + 1) for j in range(b, d + 1)]
        try:
            given = json.loads(given.replace("(", "[").replace(")", "]"))
        except json.JSONDecodeError:
            given = None
    if not given:
        raise ValueError("image_grid_pinpoints is missing or not like [[384, 768], ...]: set it in overwrite_config")
    return [[int(height), int(width)] for width, height in given]


def _aspect(given: str | None) -> str:
    """The limit on tiles. Plain "anyres" has none, which transformers cannot say: a limit that is never reached."""
    if given == "anyres":
        return "anyres_max_10000"
    if re.fullmatch(r"anyres_max_\d+", given or ""):
        return given
    raise ValueError(f"image_aspect_ratio={given!r}: with a SigLIP tower only anyres and anyres_max_N can be loaded")


def _siglip(tower: str) -> SiglipVisionConfig:
    """The tower without its last layer and its head, as the original uses it."""
    if _SO400M in tower and not Path(tower).is_dir():
        return LlavaOnevisionConfig().vision_config  # known: nothing to download
    folder = local_folder(tower, allow_patterns=["*.json"]) if not Path(tower).is_dir() else Path(tower)
    vision = SiglipVisionConfig.from_pretrained(folder)
    vision.num_hidden_layers -= 1
    vision.vision_use_head = False
    return vision


# ---------------------------------------------------------------------------------------------------------------
# Video-LLaVA


def _load_video_llava(path: Path, raw: dict[str, Any], vision_tower: str | None, options: dict[str, Any]):
    temporal = [name for name in stored_names(path) if TEMPORAL.search(name)]
    if temporal:
        raise ValueError(
            f"{path} has attention over frames in its video tower ({temporal[0]} and {len(temporal) - 1} more), which "
            "transformers has no class for; without it the model would be another. The converted "
            "LanguageBind/Video-LLaVA-7B-hf, made without these weights, can be loaded"
        )
    vision = _languagebind(vision_tower or str(raw.get("mm_image_tower") or raw["mm_video_tower"]))
    config = video_llava_config(raw, vision)
    tokenizer = load_tokenizer(path, raw)
    tokenizer.chat_template = None
    add_places(tokenizer)
    model = _load(VideoLlavaForConditionalGeneration, path, config, VIDEO_KEYS, options)
    fit_vocabulary(model, tokenizer)
    square = {"height": vision.image_size, "width": vision.image_size}
    return tokenizer, model, CLIPImageProcessorPil(size={"shortest_edge": vision.image_size}, crop_size=square)


def video_llava_config(raw: dict[str, Any], vision: CLIPVisionConfig) -> VideoLlavaConfig:
    """The stock config that means the same as an original one. ValueError where there is none."""
    feature = raw.get("mm_vision_select_feature", "patch")
    if feature not in _SELECT:
        raise ValueError(f"mm_vision_select_feature={feature!r}: use one of {', '.join(_SELECT)}")
    missing = [key for key in ("mm_image_tower", "mm_video_tower") if not raw.get(key)]
    if missing:
        raise ValueError(f"config.json names no {missing[0]}: only Video-LLaVA with both towers can be loaded")
    text = LlamaConfig(**_given(raw))
    patches = (vision.image_size // vision.patch_size) ** 2
    config = VideoLlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=text.vocab_size,
        video_token_index=text.vocab_size + 1,
        vision_feature_layer=raw.get("mm_vision_select_layer", -2),
        vision_feature_select_strategy=_SELECT[feature],
        image_seq_length=patches,
        video_seq_length=8 * (patches + 1),
        tie_word_embeddings=text.tie_word_embeddings,
    )
    if "image_aspect_ratio" in raw:  # "pad": pictures are squared, not cropped
        config.image_aspect_ratio = raw["image_aspect_ratio"]
    return keep(raw, config)


def _languagebind(tower: str) -> CLIPVisionConfig:
    """LanguageBind's ViT-L/14, or what the config.json of a local folder says; the weights are in the checkpoint."""
    if Path(tower, "config.json").is_file():
        own = read_config(tower)
        return CLIPVisionConfig(**own.get("vision_config", own))
    vision = VideoLlavaConfig().vision_config
    vision.hidden_act = "gelu"  # OpenCLIP's, from which LanguageBind started
    return vision


# ---------------------------------------------------------------------------------------------------------------
# Shared


def check_weights(path: Path, info: dict[str, Any], layers: int | None = None) -> None:
    """ValueError where a weight that matters is missing, left over, or has another shape.

    ``layers``: how many of its encoder's layers a tower uses; more may be in the files.
    """
    beyond = re.compile(r"_tower\..*\.layers\.(\d+)\.")

    def unused(name: str) -> bool:
        found = beyond.search(name)
        return bool(UNUSED.search(name) or (layers is not None and found and int(found[1]) >= layers))

    missing = {name for name in info["missing_keys"] if not UNUSED.search(name)}
    left = {name for name in info["unexpected_keys"] if not name.endswith(BUFFERS) and not unused(name)}
    wrong = {str(name) for name in info["mismatched_keys"]}
    kinds = (("missing", missing), ("left over", left), ("of another shape", wrong))
    listing = "; ".join(f"{kind}: {_listing(names)}" for kind, names in kinds if names)
    if listing:
        raise ValueError(
            f"the weights in {path} do not fit the model in its config.json ({listing}): download it again"
        )


def _listing(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:4]) + (" ..." if len(names) > 4 else "")


def _load(cls: Any, path: Path, config: Any, keys: dict[str, str], options: dict[str, Any]) -> Any:
    model, info = cls.from_pretrained(
        path, config=config, key_mapping=keys, output_loading_info=True, ignore_mismatched_sizes=True, **options
    )
    # transformers remembers the mapping and would save in the original layout, under a config that is not.
    model.__dict__.pop("_weight_conversions", None)
    check_weights(path, info, config.vision_config.num_hidden_layers)
    return model


def _given(raw: dict[str, Any]) -> dict[str, Any]:
    return {key: raw[key] for key in _TEXT_KEYS if raw.get(key) is not None}


def keep(raw: dict[str, Any], config: Any) -> Any:
    """Set what users and the loader read from the config later."""
    for key in _KEPT_KEYS:
        if raw.get(key) is not None:
            setattr(config, key, raw[key])
    return config


def add_places(tokenizer: Any) -> None:
    tokenizer.add_tokens([DEFAULT_IMAGE_TOKEN, DEFAULT_VIDEO_TOKEN], special_tokens=True)
    tokenizer.padding_side = "left"


def fit_vocabulary(model: Any, tokenizer: Any) -> None:
    """Rows for the new tokens: transformers looks them up before pictures replace them."""
    there = model.get_input_embeddings().num_embeddings
    model.config.image_token_index = tokenizer.convert_tokens_to_ids(DEFAULT_IMAGE_TOKEN)
    model.config.video_token_index = tokenizer.convert_tokens_to_ids(DEFAULT_VIDEO_TOKEN)
    if len(tokenizer) > there:
        model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64, mean_resizing=False)
        with torch.no_grad():  # the new rows start as noise; a placeholder must not be written by chance
            model.get_output_embeddings().weight[there:] = 0
    model.config.text_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
