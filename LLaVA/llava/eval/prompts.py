"""From a question to token ids, by a checkpoint's own chat template or by one of the original conversations."""

from __future__ import annotations

import re
from typing import Any

import torch

from llava.constants import (
    DEFAULT_IM_END_TOKEN,
    DEFAULT_IM_START_TOKEN,
    DEFAULT_IMAGE_TOKEN,
    IMAGE_PLACEHOLDER,
    IMAGE_TOKEN_INDEX,
)
from llava.conversation import conv_mode_for, conv_templates
from llava.mm_utils import tokenizer_image_token


def place_images(query: str, images: int, start_end: bool = False) -> str:
    """The query with one ``<image>`` for each picture.

    ``<image-placeholder>`` says where; without any, the pictures come first, each on a line of its own.

    Raises:
        ValueError: the query has another number of placeholders than there are pictures.
    """
    token = DEFAULT_IM_START_TOKEN + DEFAULT_IMAGE_TOKEN + DEFAULT_IM_END_TOKEN if start_end else DEFAULT_IMAGE_TOKEN
    places = query.count(IMAGE_PLACEHOLDER)
    if not places:
        return f"{token}\n" * images + query
    if places != images:
        raise ValueError(
            f"the query has {places} {IMAGE_PLACEHOLDER} and there are {images} picture(s): make them equal"
        )
    return query.replace(IMAGE_PLACEHOLDER, token)


def build_prompt(query: str, images: int, tokenizer: Any, config: Any, model_name: str, conv_mode: str | None) -> str:
    """The whole prompt, open for the answer.

    ``conv_mode`` names a template of ``llava.conversation``. None: the checkpoint's chat template, or, where it has
    none (original layout), the template that goes with the model's name.
    """
    text = place_images(query, images, getattr(config, "mm_use_im_start_end", False))
    if conv_mode is None and tokenizer.chat_template:
        return _chat(text, tokenizer)
    mode = conv_mode or conv_mode_for(model_name)
    if mode not in conv_templates:
        raise ValueError(f"no conversation template {mode!r}: use one of {', '.join(sorted(conv_templates))}")
    conv = conv_templates[mode].copy()
    conv.append_message(conv.roles[0], text)
    conv.append_message(conv.roles[1], None)
    return conv.get_prompt()


def encode(prompt: str, tokenizer: Any) -> torch.Tensor:
    """Token ids (1, T) with one placeholder for each picture.

    A checkpoint in the layout of transformers has ``<image>`` in its tokenizer and was tuned on whole prompts; for the
    original layout the text is cut at the pictures, as the original code does.
    """
    if tokenizer.chat_template:
        return tokenizer(prompt, return_tensors="pt")["input_ids"]
    return tokenizer_image_token(prompt, tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt")[None]


def _chat(text: str, tokenizer: Any) -> str:
    """The chat template, given pictures and text as parts in their order."""
    content = []
    for part in re.split(f"({re.escape(DEFAULT_IMAGE_TOKEN)}\n?)", text):
        if part.startswith(DEFAULT_IMAGE_TOKEN):
            content.append({"type": "image"})
        elif part:
            content.append({"type": "text", "text": part})
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
