"""From a question about pictures and videos to the prompt a checkpoint was tuned on."""

from __future__ import annotations

import re
from typing import Any

from jinja2 import TemplateError

from llava.constants import DEFAULT_IMAGE_TOKEN, DEFAULT_VIDEO_TOKEN, IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER
from llava_next.conversation import conv_templates
from llava_next.tokens import NEXT_VIDEO, ONEVISION, VIDEO_LLAVA

# Where neither a chat template nor the user says otherwise.
CONV_MODES = {ONEVISION: "qwen_1_5", NEXT_VIDEO: "vicuna_v1", VIDEO_LLAVA: "llava_v1"}
_PARTS = re.compile(f"({re.escape(DEFAULT_IMAGE_TOKEN)}\n?|{re.escape(DEFAULT_VIDEO_TOKEN)}\n?)")


def place_media(query: str, images: int, videos: int = 0) -> str:
    """The query with one ``<image>`` or ``<video>`` for each picture and video.

    ``<image-placeholder>`` and ``<video-placeholder>`` say where; without any, they come first, each on its own line.

    Raises:
        ValueError: the query has another number of placeholders than there are media.
    """
    query = _place(query, DEFAULT_VIDEO_TOKEN, VIDEO_PLACEHOLDER, videos)
    return _place(query, DEFAULT_IMAGE_TOKEN, IMAGE_PLACEHOLDER, images)


def build_prompt(
    query: str, images: int, videos: int, tokenizer: Any, config: Any, conv_mode: str | None = None
) -> str:
    """The whole prompt, open for the answer.

    ``conv_mode`` names a template of ``llava_next.conversation``. None: the checkpoint's chat template, or, where it
    has none, the one that the family was trained with.
    """
    text = place_media(query, images, videos)
    if conv_mode is None and tokenizer.chat_template:
        return _chat(text, tokenizer)
    mode = conv_mode or usual_mode(tokenizer, config)
    if mode not in conv_templates:
        raise ValueError(f"no conversation template {mode!r}: use one of {', '.join(sorted(conv_templates))}")
    conv = conv_templates[mode].copy()
    conv.append_message(conv.roles[0], text)
    conv.append_message(conv.roles[1], None)
    return conv.get_prompt()


def usual_mode(tokenizer: Any, config: Any) -> str:
    """The template that a checkpoint without one was trained with; LLaVA-NeXT-Video has three language models."""
    if config.model_type == NEXT_VIDEO:
        if tokenizer.eos_token == "<|im_end|>":  # Yi
            return "chatml_direct"
        if config.text_config.model_type == "mistral":
            return "mistral_instruct"
    return CONV_MODES[config.model_type]


def _place(query: str, token: str, placeholder: str, count: int) -> str:
    places = query.count(placeholder)
    if not places:
        return f"{token}\n" * count + query
    if places != count:
        raise ValueError(f"the query has {places} {placeholder} and {count} were given: make them equal")
    return query.replace(placeholder, token)


def _chat(text: str, tokenizer: Any) -> str:
    """The chat template, given pictures, videos and text as parts in their order.

    A template that knows no such parts gets the placeholders inside the text, and one for text alone (Qwen's, say)
    gets one string.
    """
    if not _takes_parts(tokenizer):
        return _render(text, tokenizer)
    out = _render(_content(text), tokenizer)
    if all(out.count(token) == text.count(token) for token in (DEFAULT_IMAGE_TOKEN, DEFAULT_VIDEO_TOKEN)):
        return out
    return _render([{"type": "text", "text": text}], tokenizer)


def _render(content: Any, tokenizer: Any) -> str:
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )


def _takes_parts(tokenizer: Any) -> bool:
    """Whether the template reads a list of parts; others fail on one, or print it."""
    try:
        return "'type'" not in _render([{"type": "text", "text": "?"}], tokenizer)
    except (TemplateError, TypeError):
        return False


def _content(text: str) -> list[dict[str, str]]:
    content = []
    for part in _PARTS.split(text):
        if part.startswith(DEFAULT_IMAGE_TOKEN):
            content.append({"type": "image"})
        elif part.startswith(DEFAULT_VIDEO_TOKEN):
            content.append({"type": "video"})
        elif part:
            content.append({"type": "text", "text": part})
    return content
