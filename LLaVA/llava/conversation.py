"""Conversations, and the prompt strings that each family of checkpoints was trained on.

A ``Conversation`` holds a system sentence and (role, message) turns; ``get_prompt`` renders them. A message is a text,
a tuple ``(text, image, image_process_mode)``, or None for a turn that the model is to fill. ``conv_templates`` holds
one empty conversation per key: take a ``copy()`` before adding turns.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from io import BytesIO
from typing import Any

from PIL import Image

from llava import conversation_templates as texts
from llava.constants import DEFAULT_IMAGE_TOKEN

CLIP_MEAN_RGB = (122, 116, 104)
RESIZE_SIDE = 336

Turn = tuple[str, str]  # role, text; an empty text is the open turn


class SeparatorStyle(Enum):
    """How turns are joined; each member has one renderer below."""

    SINGLE = auto()
    TWO = auto()
    MPT = auto()
    PLAIN = auto()
    LLAMA_2 = auto()
    CHATML = auto()
    QWEN = CHATML  # the same assembly under a second name
    LLAMA_3 = auto()
    GEMMA = auto()


@dataclass
class Conversation:
    """A dialogue and the rules that turn it into a prompt.

    ``roles`` are (user, assistant); turns alternate and the user begins. The first ``offset`` messages are worked
    examples, not part of what a user sees. ``sep`` ends a turn; where ``sep2`` matters it ends the assistant's turn.
    """

    system: str
    roles: Sequence[str]
    messages: Sequence[Sequence[Any]]
    offset: int
    sep_style: SeparatorStyle = SeparatorStyle.SINGLE
    sep: str = "###"
    sep2: str | None = None
    version: str = "Unknown"
    skip_next: bool = False

    def get_prompt(self) -> str:
        """The whole dialogue as one string. An empty or None message leaves its turn open.

        When the first message carries a picture, its ``<image>`` moves in front of the text (``*mmtag*`` versions: to
        a turn of its own, answered "Received."). Later ones stay where their text has them.
        """
        return _RENDERERS[self.sep_style](self, self._turns())

    def append_message(self, role: str, message: Any) -> None:
        self.messages.append([role, message])

    def process_image(
        self,
        image: Image.Image,
        image_process_mode: str,
        return_pil: bool = False,
        image_format: str = "PNG",
        max_len: int = 1344,
        min_len: int = 672,
    ) -> Image.Image | str:
        """The picture as it is shown or sent on: a PIL image, or base64 text of ``image_format``.

        Mode "Pad" makes it square, "Resize" makes it 336 x 336, "Default" and "Crop" leave it. Then, if a side is
        over ``max_len`` pixels, it shrinks until neither ``max_len`` nor, on the short side, ``min_len`` is exceeded.
        """
        image = _shrink(_reshape(image, image_process_mode), max_len, min_len)
        return image if return_pil else _as_base64(image, image_format)

    def get_images(self, return_pil: bool = False) -> list[Image.Image | str]:
        """Every picture in the user's turns, in order, each processed by its own message's mode."""
        return [
            self.process_image(image, message[2], return_pil)
            for _, message in self.messages[self.offset :: 2]
            if isinstance(message, tuple)
            for image in _as_list(message[1])
        ]

    def to_gradio_chatbot(self) -> list[list[str | None]]:
        """[user, assistant] pairs, pictures inlined as HTML in front of their text; None for an answer to come."""
        shown = self.messages[self.offset :]
        pairs = [[self._as_html(message), None] for _, message in shown[::2]]
        for pair, (_, message) in zip(pairs, shown[1::2], strict=False):
            pair[1] = _text(message)
        return pairs

    def copy(self) -> Conversation:
        """An independent conversation; pictures inside messages are shared, not copied."""
        return replace(self, messages=[list(message) for message in self.messages])

    def dict(self) -> dict[str, Any]:
        """What a log needs, without the pictures."""
        return {
            "system": self.system,
            "roles": self.roles,
            "messages": [[role, _text(message)] for role, message in self.messages],
            "offset": self.offset,
            "sep": self.sep,
            "sep2": self.sep2,
        }

    def _turns(self) -> list[Turn]:
        turns = [(role, _text(message) or "") for role, message in self.messages]
        if not self.messages or not isinstance(self.messages[0][1], tuple):
            return turns
        role, text = turns[0]
        text = text.replace(DEFAULT_IMAGE_TOKEN, "").strip()
        if "mmtag" not in self.version:
            return [(role, f"{DEFAULT_IMAGE_TOKEN}\n{text}"), *turns[1:]]
        user, assistant = self.roles
        picture = [(user, f"<Image>{DEFAULT_IMAGE_TOKEN}</Image>"), (assistant, "Received.")]
        return [*picture, (role, text), *turns[1:]]

    def _as_html(self, message: Any) -> str | None:
        if not isinstance(message, tuple):
            return message
        tags = [
            f'<img src="data:image/jpeg;base64,{self.process_image(image, "Default", image_format="JPEG")}" '
            'alt="user upload image" />'
            for image in _as_list(message[1])
        ]
        return "".join(tags) + message[0].replace(DEFAULT_IMAGE_TOKEN, "").strip()


def _text(message: Any) -> str | None:
    return message[0] if isinstance(message, tuple) else message


def _as_list(images: Any) -> list[Image.Image]:
    return list(images) if isinstance(images, (list, tuple)) else [images]


def _reshape(image: Image.Image, mode: str) -> Image.Image:
    if mode == "Pad":
        from llava.mm_utils import expand2square  # here, so that prompts can be rendered without torch

        return expand2square(image.convert("RGB"), CLIP_MEAN_RGB)
    if mode == "Resize":
        return image.resize((RESIZE_SIDE, RESIZE_SIDE))
    if mode in ("Default", "Crop"):
        return image
    raise ValueError(f"unknown image_process_mode {mode!r}: use Pad, Resize, Crop or Default")


def _shrink(image: Image.Image, max_len: int, min_len: int) -> Image.Image:
    long, short = max(image.size), min(image.size)
    if long <= max_len:
        return image
    aspect = long / short
    new_short = max(1, int(min(max_len / aspect, min_len, short)))
    new_long = min(max_len, int(new_short * aspect))
    landscape = image.width > image.height
    return image.resize((new_long, new_short) if landscape else (new_short, new_long))


def _as_base64(image: Image.Image, image_format: str) -> str:
    if image_format.upper() in ("JPEG", "JPG") and image.mode != "RGB":
        image, image_format = image.convert("RGB"), "JPEG"  # JPEG has neither palette nor alpha
    buffer = BytesIO()
    image.save(buffer, format=image_format)
    return base64.b64encode(buffer.getvalue()).decode()


# ---------------------------------------------------------------------------------------------------------------
# Renderers, one per separator style.


def _single(conv: Conversation, turns: list[Turn]) -> str:
    return _with_colons(conv.system, turns, (conv.sep, conv.sep))


def _two(conv: Conversation, turns: list[Turn]) -> str:
    return _with_colons(conv.system, turns, (conv.sep, conv.sep2 or ""))


def _with_colons(system: str, turns: list[Turn], ends: tuple[str, str]) -> str:
    said = (f"{role}: {text}{ends[i % 2]}" if text else f"{role}:" for i, (role, text) in enumerate(turns))
    return system + ends[0] + "".join(said)


def _mpt(conv: Conversation, turns: list[Turn]) -> str:
    return conv.system + conv.sep + _headed(turns, "", conv.sep)


def _gemma(conv: Conversation, turns: list[Turn]) -> str:
    if conv.system:
        raise ValueError("Gemma has no system turn: leave `system` empty and put its text in the first message")
    return _headed(turns, "", conv.sep)


def _chatml(conv: Conversation, turns: list[Turn]) -> str:
    end = conv.sep + "\n"
    return (conv.system + end if conv.system else "") + _headed(turns, "\n", end)


def _llama_3(conv: Conversation, turns: list[Turn]) -> str:
    # <|begin_of_text|> is left to the tokenizer, as every template here leaves its BOS.
    system = [("system", conv.system)] if conv.system else []
    heads = [(f"<|start_header_id|>{role}<|end_header_id|>\n\n", text) for role, text in system + turns]
    return _headed(heads, "", conv.sep)


def _headed(turns: list[Turn], after_role: str, end: str) -> str:
    return "".join(role + after_role + (text + end if text else "") for role, text in turns)


def _llama_2(conv: Conversation, turns: list[Turn]) -> str:
    if not turns or not turns[0][1] or turns[0][0] != conv.roles[0]:
        raise ValueError(
            f"a Llama-2 prompt must open with a non-empty message from {conv.roles[0]!r}: append one first"
        )
    said = []
    for i, (_, text) in enumerate(turns):
        if i == 0 and conv.system:
            text = f"<<SYS>>\n{conv.system}\n<</SYS>>\n\n{text}"
        if text:
            said.append(f" {text} {conv.sep2}" if i % 2 else f"{conv.sep}[INST] {text} [/INST]")
    return "".join(said).removeprefix(conv.sep)  # the tokenizer writes the first BOS


def _plain(conv: Conversation, turns: list[Turn]) -> str:
    ends = (conv.sep, conv.sep if conv.sep2 is None else conv.sep2)
    return conv.system + "".join(text + ends[i % 2] for i, (_, text) in enumerate(turns) if text)


_RENDERERS: dict[SeparatorStyle, Callable[[Conversation, list[Turn]], str]] = {
    SeparatorStyle.SINGLE: _single,
    SeparatorStyle.TWO: _two,
    SeparatorStyle.MPT: _mpt,
    SeparatorStyle.PLAIN: _plain,
    SeparatorStyle.LLAMA_2: _llama_2,
    SeparatorStyle.CHATML: _chatml,
    SeparatorStyle.LLAMA_3: _llama_3,
    SeparatorStyle.GEMMA: _gemma,
}


# ---------------------------------------------------------------------------------------------------------------
# Templates. The makers below name what a family shares; the table names what sets a member apart.


def _human(system: str, **fields: Any) -> Conversation:
    return Conversation(system, ("Human", "Assistant"), [], 0, SeparatorStyle.SINGLE, "###", **fields)


def _vicuna(system: str, version: str = "v1") -> Conversation:
    return Conversation(system, ("USER", "ASSISTANT"), [], 0, SeparatorStyle.TWO, " ", "</s>", version)


def _llama(system: str, sep: str = "<s>", version: str = "llama_v2") -> Conversation:
    return Conversation(system, ("USER", "ASSISTANT"), [], 0, SeparatorStyle.LLAMA_2, sep, "</s>", version)


def _im_start(system: str) -> Conversation:
    """ChatML marks without newlines between turns, as MPT was trained."""
    roles = ("<|im_start|>user\n", "<|im_start|>assistant\n")
    system = f"<|im_start|>system\n{system}"
    return Conversation(system, roles, [], 0, SeparatorStyle.MPT, "<|im_end|>", version="mpt")


def _qwen(system: str) -> Conversation:
    roles = ("<|im_start|>user", "<|im_start|>assistant")
    system = f"<|im_start|>system\n{system}"
    return Conversation(system, roles, [], 0, SeparatorStyle.CHATML, "<|im_end|>", version="qwen")


def _vicuna_v0() -> Conversation:
    conv = _human(texts.POLITE_TO_HUMAN)
    example = (texts.ONE_SHOT_QUESTION, texts.ONE_SHOT_ANSWER)
    return replace(conv, messages=[list(turn) for turn in zip(conv.roles, example, strict=True)], offset=2)


def _zephyr() -> Conversation:
    roles = ("<|user|>\n", "<|assistant|>\n")
    return Conversation(f"<|system|>\n{texts.ZEPHYR}", roles, [], 0, SeparatorStyle.MPT, "</s>", version="mpt")


def _gemma_instruct() -> Conversation:
    roles = ("<start_of_turn>user\n", "<start_of_turn>model\n")
    return Conversation("", roles, [], 0, SeparatorStyle.GEMMA, "<end_of_turn>\n", version="gemma")


def _llava_llama_3() -> Conversation:
    """Meta's published header format, written out here: no gated tokenizer is needed to render it."""
    roles = ("user", "assistant")
    style, version = SeparatorStyle.LLAMA_3, "llama_v3"
    return Conversation(texts.LANGUAGE_AND_VISION, roles, [], 0, style, "<|eot_id|>", version=version)


def _llava_plain() -> Conversation:
    return Conversation("", ("", ""), [], 0, SeparatorStyle.PLAIN, "\n", version="plain")


conv_templates: dict[str, Conversation] = {
    "v0": _vicuna_v0(),
    "vicuna_v1": _vicuna(texts.POLITE_TO_USER),
    "llama_2": _llama(texts.LLAMA_2_SAFETY),
    "mistral_instruct": _llama("", sep=""),
    "mistral_orca": _im_start(texts.ORCA),
    "mistral_zephyr": _zephyr(),
    "chatml_direct": _im_start(texts.ANSWER_THE_QUESTIONS),
    "plain": _llava_plain(),
    "llava_v0": _human(texts.POLITE_TO_HUMAN),
    "llava_v0_mmtag": _human(texts.TAGGED_CHAT, version="v0_mmtag"),
    "llava_v1": _vicuna(texts.POLITE_TO_HUMAN),
    "llava_v1_mmtag": _vicuna(texts.TAGGED_CHAT, "v1_mmtag"),
    "llava_llama_2": _llama(texts.LANGUAGE_AND_VISION),
    "llava_llama_2_simple": _llama(texts.ABOUT_THE_PICTURE),
    "llava_llama_2_mmtag": _llama(texts.ABOUT_THE_TAGGED_PICTURE, version="llama_v2_mmtag"),
    "llava_llama_3": _llava_llama_3(),
    "mpt": _im_start(texts.MPT_HONEST),
    "qwen_1_5": _qwen(texts.HELPFUL),
    "qwen_2_5": _qwen(texts.QWEN_2_5),
    "gemma_instruct": _gemma_instruct(),
}

# Second names, kept because scripts and checkpoints use them: alias -> template.
_ALIASES = {
    "default": "v0",
    "v1": "vicuna_v1",
    "v0_mmtag": "llava_v0_mmtag",
    "v1_mmtag": "llava_v1_mmtag",
    "v0_plain": "plain",
    "mistral_direct": "chatml_direct",
    "llava_mistral_instruct": "mistral_instruct",
    "qwen_2": "qwen_1_5",
}
conv_templates |= {alias: conv_templates[name] for alias, name in _ALIASES.items()}

default_conversation = conv_templates["vicuna_v1"]

# Order matters: the first substring found in the lower-cased model name decides.
_MODE_BY_SUBSTRING = {
    "llama-2": "llava_llama_2",
    "mistral": "mistral_instruct",
    "v1.6-34b": "chatml_direct",
    "v1": "llava_v1",
    "mpt": "mpt",
    "llava-1.": "llava_v1",  # ours: names of transformers' own copies, such as llava-1.5-7b-hf
}


def conv_mode_for(model_name: str) -> str:
    """The ``conv_templates`` key that fits a model name: "llava-v1.6-mob" gives "llava_v1".

    Evaluation scripts name "vicuna_v1" themselves; the two differ in one word of the system sentence.
    """
    name = model_name.lower()
    return next((mode for part, mode in _MODE_BY_SUBSTRING.items() if part in name), "llava_v0")
