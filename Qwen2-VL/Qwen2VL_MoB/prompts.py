"""From a dialogue to token ids: Qwen's chat template, one placeholder token for every visual token."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from Qwen2VL_MoB.patches import Patches

IMAGE_PAD, VIDEO_PAD = "<|image_pad|>", "<|video_pad|>"
START, END = "<|vision_start|>", "<|vision_end|>"
IMAGE_PLACE, VIDEO_PLACE = "<image>", "<video>"
IMAGE, VIDEO = 1, 2  # in mm_token_type_ids; 0 is text
SYSTEM = "You are a helpful assistant."
_MARKS = re.compile("|".join(map(re.escape, (IMAGE_PAD, VIDEO_PAD, START, END))))

Message = dict[str, Any]


def place(query: str, images: int, videos: int) -> str | list[dict[str, str]]:
    """A question as the content of a chat message: text, or parts in their order.

    ``<image>`` and ``<video>`` in the query say where pictures and videos go. Without them the pictures come first,
    then the videos, then the text. Where there are no pictures, ``<image>`` is plain text; the same for videos.

    Raises:
        ValueError: another number of marks than pictures or videos; special tokens of Qwen in the text.
    """
    check_text(query, "query")
    marks, front = [], []
    for kind, mark, count in (("image", IMAGE_PLACE, images), ("video", VIDEO_PLACE, videos)):
        found = query.count(mark) if count else 0
        if found and found != count:
            raise ValueError(
                f"the query has {found} {mark} and there are {count} {kind}(s): write one for each, or none to put "
                "them before the text"
            )
        if found:
            marks.append(mark)
        else:
            front += [{"type": kind}] * count
    if not images and not videos:
        return query
    pieces = re.split(f"({'|'.join(marks)})", query) if marks else [query]
    parts = [{"type": piece[1:-1]} if piece in marks else {"type": "text", "text": piece} for piece in pieces if piece]
    return front + parts


def check_text(text: Any, what: str) -> None:
    """ValueError for what is no text, or holds a token that stands for a picture."""
    if not isinstance(text, str):
        raise ValueError(f"{what} is a {type(text).__name__}: give text; pictures go into image= and video=")
    if found := _MARKS.search(text):
        raise ValueError(f"{what} holds {found[0]}: write {IMAGE_PLACE} or {VIDEO_PLACE} where a picture or video goes")


def render(messages: list[Message], tokenizer: Any, family: str) -> str:
    """The dialogue as text, open for the answer, with one pad token for each picture and video.

    By the tokenizer's chat template; by ``own_template`` where it has none, or one that drops pictures.
    """
    if getattr(tokenizer, "chat_template", None):
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        kinds = [
            part["type"] for message in messages if isinstance(message["content"], list) for part in message["content"]
        ]
        if [text.count(IMAGE_PAD), text.count(VIDEO_PAD)] == [kinds.count("image"), kinds.count("video")]:
            return text
    return own_template(messages, family)


def own_template(messages: list[Message], family: str = "qwen2_vl") -> str:
    """Qwen's template. Qwen2-VL and Qwen2.5-VL begin with a system message even where none is given."""
    if messages[0]["role"] != "system" and not family.startswith("qwen3"):
        messages = [{"role": "system", "content": SYSTEM}, *messages]
    turns = [f"<|im_start|>{message['role']}\n{_content(message['content'])}<|im_end|>\n" for message in messages]
    return "".join(turns) + "<|im_start|>assistant\n"


def _content(content: str | list[dict[str, str]]) -> str:
    if isinstance(content, str):
        return content
    pads = {"image": START + IMAGE_PAD + END, "video": START + VIDEO_PAD + END}
    return "".join(part["text"] if part["type"] == "text" else pads[part["type"]] for part in content)


def expand(text: str, pictures: Sequence[Patches], videos: Sequence[Patches], merge: int, family: str) -> str:
    """The text with a pad token for every visual token.

    Qwen3-VL: before each group of frames of a video stands when it was shown, and marks stand around each group, within
    the marks that stand around the video; as the processor of transformers 5.17 to 5.23 writes it.
    """
    images, clips = iter(pictures), iter(videos)

    def pads(match: re.Match) -> str:
        if match[0] == IMAGE_PAD:
            return IMAGE_PAD * (math.prod(next(images).grid) // merge**2)
        video = next(clips)
        frame = VIDEO_PAD * (math.prod(video.grid[1:]) // merge**2)
        if not family.startswith("qwen3"):
            return frame * video.grid[0]
        return "".join(f"<{seconds:.1f} seconds>{START}{frame}{END}" for seconds in video.seconds)

    return re.sub(f"{re.escape(IMAGE_PAD)}|{re.escape(VIDEO_PAD)}", pads, text)


def encode(text: str, tokenizer: Any, config: Any) -> dict[str, Tensor]:
    """input_ids, attention_mask and mm_token_type_ids, (1, T) each.

    Raises:
        ValueError: the tokenizer is not that of the model.
    """
    for pad, wanted in ((IMAGE_PAD, config.image_token_id), (VIDEO_PAD, config.video_token_id)):
        found = tokenizer.convert_tokens_to_ids(pad)
        if pad in text and found != wanted:
            raise ValueError(
                f"{pad} is token {found} of this tokenizer and {wanted} of this model: load the tokenizer of this "
                "checkpoint"
            )
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    kinds = torch.zeros_like(ids, dtype=torch.int32)
    for token, kind in ((config.image_token_id, IMAGE), (config.video_token_id, VIDEO)):
        kinds[ids == token] = kind
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": kinds}


def pad_batch(samples: Sequence[dict[str, Tensor]], pad_token_id: int) -> dict[str, Tensor]:
    """Inputs of several dialogues as one batch, padded on the left; pictures and videos in their order."""
    width = max(sample["input_ids"].shape[1] for sample in samples)
    fill = {"input_ids": pad_token_id, "attention_mask": 0, "mm_token_type_ids": 0}
    batch = {}
    for key, value in fill.items():
        rows = [sample[key][0] for sample in samples]
        batch[key] = torch.stack([torch.nn.functional.pad(row, (width - len(row), 0), value=value) for row in rows])
    rest = {key: None for sample in samples for key in sample if key not in fill}
    return batch | {key: torch.cat([sample[key] for sample in samples if key in sample]) for key in rest}
