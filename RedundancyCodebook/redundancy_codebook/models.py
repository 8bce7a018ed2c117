"""The models that are measured: what they see of a picture, their prompts, and which model a codebook belongs to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX
from llava.eval import prompts as llava_prompts
from llava.mm_utils import get_model_name_from_path, seen_box
from llava.scenes.checkpoint import PATH as EMBEDDED
from llava_next import prompts as next_prompts
from llava_next.mm_utils import process_images
from llava_next.model.builder import load_pretrained_model
from llava_next.processing import token_ids
from llava_next.tokens import FAMILIES as NEXT_FAMILIES
from mob.anatomy import dissect
from mob.codebook_file import projector_sha256
from mob.layout import grid_side
from mob.spans import visual_token_ids

FAMILIES = ("llava", "llava_next", "llava_next_video", "llava_onevision")


@dataclass(frozen=True, eq=False)
class Subject:
    """A loaded model with all that is needed to ask it about a picture."""

    model: nn.Module
    tokenizer: Any
    image_processor: Any
    name: str

    def __post_init__(self) -> None:
        kind = self.model.config.model_type
        if kind not in FAMILIES:
            raise ValueError(f"a model of type {kind!r} cannot be measured: use one of {', '.join(FAMILIES)}")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the tokens of one view."""
        side = grid_side(self.model.config)
        return side, side


@dataclass(frozen=True)
class Encoded:
    """One view of a picture. ``features``: (L, D) projected tokens; ``cls_cosine``: float32 (L,), None without CLS."""

    features: Tensor
    cls_cosine: Tensor | None


def load(
    path: str | None = None, device: str = "cuda", dtype: str = "float16", attention: str | None = None
) -> Subject:
    """A checkpoint of any LLaVA family, or the embedded one. ValueError for what cannot be loaded or measured."""
    path = str(path or EMBEDDED)
    name = get_model_name_from_path(path)
    options = {"torch_dtype": dtype, "attn_implementation": attention, "device": device}
    tokenizer, model, image_processor, _ = load_pretrained_model(path, None, name, **options)
    return Subject(model, tokenizer, image_processor, "llava-scenes" if path == str(EMBEDDED) else name)


def base_view(subject: Subject, image: Image.Image, crop: bool = False) -> Tensor:
    """(1, 3, H, W): the whole picture in one view, as the model sees it (of LLaVA-NeXT and OneVision: without tiles).

    Args:
        crop: resize and centre-crop where the checkpoint would pad to a square, as the published experiments did.
    """
    config = subject.model.config
    if crop and not getattr(config, "image_grid_pinpoints", None):
        config = SimpleNamespace()
    view = process_images([image.convert("RGB")], subject.image_processor, config)[0]
    return (view if view.ndim == 4 else view[None])[:1]


def seen(subject: Subject, size: tuple[int, int], crop: bool = False) -> tuple[float, float, float, float]:
    """The region of a picture of (width, height) that ``base_view`` shows, in its pixels; beyond it is padding."""
    config = SimpleNamespace() if crop else subject.model.config
    if getattr(subject.model.config, "image_grid_pinpoints", None):
        config = subject.model.config
    return seen_box(size, subject.image_processor, config)


@torch.inference_mode()
def encode(subject: Subject, pixels: Tensor) -> Encoded:
    """Tower and projector on one view, (1, 3, H, W)."""
    model = subject.model
    base = dissect(model).base
    config = model.config
    tower, project = base.vision_tower, base.multi_modal_projector
    pixels = pixels.to(next(tower.parameters()).device, model.dtype)
    states = tower(pixels, output_hidden_states=True, return_dict=True).hidden_states
    chosen = config.vision_feature_layer
    layers = [states[index] for index in ([chosen] if isinstance(chosen, int) else chosen)]
    has_cls = "siglip" not in getattr(config.vision_config, "model_type", "")
    patches = [state[:, 1:] if has_cls else state for state in layers]
    if has_cls and config.vision_feature_select_strategy != "default":
        raise ValueError("this model's visual tokens include the CLS token: measuring needs one that drops it")
    features = project(torch.cat(patches, -1))[0]
    rows, columns = subject.grid
    if len(features) != rows * columns:
        raise ValueError(f"the projector gives {len(features)} tokens for {rows} x {columns} patches: not supported")
    cosine = None
    if has_cls:
        cosine = torch.cosine_similarity(patches[-1][0].float(), layers[-1][0, :1].float(), dim=-1)
    return Encoded(features, cosine)


def newline(subject: Subject) -> Tensor | None:
    """(1, D): what the model puts after a view, None for nothing."""
    row = getattr(dissect(subject.model).base, "image_newline", None)
    return None if row is None else row.detach()[None]


def split_prompt(
    subject: Subject, question: str, template: str | None = None, conv_mode: str | None = None, answer: str = ""
) -> tuple[list[int], list[int]]:
    """Token ids before and after the picture.

    Args:
        template: the whole prompt, with ``<image>`` and ``{question}`` in it. None: the checkpoint's own.
        conv_mode: name of a conversation template instead of the checkpoint's own.
        answer: the beginning of the answer, such as "A"; the next token is what is measured.

    Raises:
        ValueError: the prompt does not have exactly one place for the picture.
    """
    tokenizer, config = subject.tokenizer, subject.model.config
    if template is not None:
        prompt = template.replace("{question}", question)
    elif config.model_type in NEXT_FAMILIES:
        prompt = next_prompts.build_prompt(question, 1, 0, tokenizer, config, conv_mode)
    else:
        prompt = llava_prompts.build_prompt(question, 1, tokenizer, config, subject.name, conv_mode)
    prompt += f" {answer}" if answer else ""
    if prompt.count(DEFAULT_IMAGE_TOKEN) != 1:
        raise ValueError(f"the prompt has {prompt.count(DEFAULT_IMAGE_TOKEN)} {DEFAULT_IMAGE_TOKEN}: it needs one")
    if config.model_type in NEXT_FAMILIES:
        ids = token_ids(prompt, tokenizer)
    else:
        ids = llava_prompts.encode(prompt, tokenizer)[0].tolist()
    places = [i for i, token in enumerate(ids) if token == IMAGE_TOKEN_INDEX or token in visual_token_ids(config)]
    if len(places) != 1:
        raise ValueError(f"the tokenizer makes {len(places)} picture tokens of the prompt: it needs one")
    before, after = ids[: places[0]], ids[places[0] + 1 :]
    if not before or not after:
        raise ValueError("the prompt must have text before and after <image>: at least a first token and a question")
    return before, after


def identity(subject: Subject) -> dict[str, Any]:
    """Which model prototypes belong to; goes into every codebook."""
    config, vision = subject.model.config, subject.model.config.vision_config
    return {
        "model": subject.name,
        "model_type": config.model_type,
        "tower": f"{vision.model_type}, {vision.image_size} pixels, patches of {vision.patch_size}",
        "feature_layer": config.vision_feature_layer,
        "feature_stage": "projector",
        "grid": list(subject.grid),
        "D": config.get_text_config().hidden_size,
        "projector_sha256": projector_sha256(subject.model),
    }


def model_path(text: str | None) -> str | None:
    """A folder as an absolute path, a hub name as it is."""
    return str(Path(text).expanduser().resolve()) if text and Path(text).expanduser().is_dir() else text
