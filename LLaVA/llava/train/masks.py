"""From a dialogue to token ids and labels: what is asked is masked, what is answered is learnt.

A prompt is tokenised once and whole, as it is at inference. Which of its tokens belong to an answer is found by
tokenising what comes before: no constant says how many tokens a separator has, so every tokenizer will do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llava.constants import DEFAULT_IMAGE_TOKEN, IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.conversation import Conversation, SeparatorStyle
from llava.mm_utils import tokenizer_image_token

_REACH = 64  # characters that a token (or a character's byte tokens) may lie across the begin of an answer

Tokens = Callable[[str], list[int]]


@dataclass(frozen=True)
class Dialogue:
    """A rendered conversation; ``answers`` are the (start, end) characters that the assistant is to write.

    An answer begins after the colon, or other mark, that opens the assistant's turn, and ends after the separator that
    closes it: the model must learn to stop.
    """

    prompt: str
    answers: tuple[tuple[int, int], ...]


def render(turns: Sequence[str], conv: Conversation) -> Dialogue:
    """The prompt of a finished dialogue.

    Args:
        turns: texts, the user's first, in turn. For a plain conversation the first holds the pictures, the second the
            caption; what else the first says is dropped, as captions are learnt without a question.
        conv: template; messages in it (worked examples) are left out.
    """
    if conv.sep_style is SeparatorStyle.PLAIN:
        pictures = DEFAULT_IMAGE_TOKEN * turns[0].count(DEFAULT_IMAGE_TOKEN)
        prompt = pictures + turns[1] + conv.sep
        return Dialogue(prompt, ((len(pictures), len(prompt)),))
    talk = conv.copy()
    talk.messages, talk.offset = [], 0
    # Without a system text, chat templates put nothing before the first turn, and the original a separator.
    lead = len(conv.sep) if conv.sep_style is SeparatorStyle.TWO and not conv.system else 0
    answers = []
    for number, text in enumerate(turns):
        answering = number % 2 == 1
        talk.append_message(talk.roles[number % 2], None if answering else text)
        if answering:
            start = len(talk.get_prompt()) - lead
            talk.messages[-1][1] = text
            answers.append((start, len(talk.get_prompt()) - lead))
    return Dialogue(talk.get_prompt()[lead:], tuple(answers))


def tokens_of(tokenizer: Any) -> Tokens:
    """How prompts become ids, -200 standing for a picture; the same way as ``llava.eval.prompts.encode`` does it."""
    if not tokenizer.chat_template:
        return lambda text: tokenizer_image_token(text, tokenizer, IMAGE_TOKEN_INDEX)
    picture = tokenizer.convert_tokens_to_ids(DEFAULT_IMAGE_TOKEN)
    return lambda text: [IMAGE_TOKEN_INDEX if i == picture else i for i in tokenizer(text)["input_ids"]]


def encode(dialogue: Dialogue, tokens: Tokens, limit: int | None = None) -> tuple[list[int], list[int]]:
    """(ids, labels) of a dialogue, of equal length; labels are -100 but for the tokens of answers.

    A token that lies across the begin of an answer belongs to the answer, one across its end to what follows.

    Args:
        limit: the first so many are enough. Each answer costs the tokenising of all that comes before its begin and its
            end, so those of a long conversation that nobody will see are not looked for.
    """
    ids = tokens(dialogue.prompt)
    labels = [IGNORE_INDEX] * len(ids)
    for start, end in dialogue.answers:
        first = _count(dialogue.prompt, start, ids, tokens)
        if limit is not None and first >= limit:
            break
        last = _count(dialogue.prompt, end, ids, tokens)
        labels[first:last] = ids[first:last]
    kept = zip(ids[:limit], labels[:limit], strict=True)
    return ids[:limit], [IGNORE_INDEX if i == IMAGE_TOKEN_INDEX else label for i, label in kept]


def _count(prompt: str, at: int, ids: list[int], tokens: Tokens) -> int:
    """How many of ``ids`` end at or before character ``at``.

    Where a token lies across ``at``, the text before it is tokenised otherwise than it is in the prompt; then the last
    character before it is looked for at which the two agree.
    """
    if at == len(prompt):
        return len(ids)
    for end in range(at, max(-1, at - _REACH), -1):
        before = tokens(prompt[:end])
        if before == ids[: len(before)]:
            return len(before)
    raise ValueError(f"the tokenizer joins {prompt[max(0, at - 20) : at + 20]!r} into one token: use another template")
