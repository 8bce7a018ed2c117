"""A language model as judge of short answers: right or wrong, and how near, from 0 to 5.

Published results on the four video benchmarks were judged by GPT-3.5, whose versions differ by several points; a number
from a judge says which one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

TRIES = 3
SYSTEM = (
    "You grade answers to questions about videos. You are given a question, the correct answer and a model's answer. "
    "The model's answer is right if it means the same as the correct one; synonyms, paraphrases and additional detail "
    "are fine, contradictions are not."
)
_ASK = (
    "Question: {question}\nCorrect answer: {answer}\nModel's answer: {pred}\n\n"
    'Reply with one JSON object and nothing else: {{"pred": "yes" or "no", "score": an integer from 0 (unrelated) to 5 '
    "(the same meaning)}}."
)
_PRED = re.compile(r"""["']?pred["']?\s*:\s*["']?(yes|no)\b""", re.IGNORECASE)
_SCORE = re.compile(r"""["']?score["']?\s*:\s*["']?([0-5])(?![\d.]*[1-9])""", re.IGNORECASE)


class Unreachable(Exception):
    """The judge did not reply at all; one line."""


@dataclass(frozen=True)
class Verdict:
    right: bool
    score: int


class Judge:
    """Asks a chat model, by a client in the manner of the openai package. Safe to share between threads."""

    def __init__(self, client: Any, model: str) -> None:
        self.client, self.model = client, model

    def __call__(self, question: str, answer: str, pred: str) -> Verdict:
        """ValueError where none of a few replies can be read; Unreachable where there is none."""
        asked = _ASK.format(question=question, answer=answer, pred=pred)
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": asked}]
        text = ""
        for _ in range(TRIES):
            text = self._reply(messages)
            verdict = read(text)
            if verdict is not None:
                return verdict
        raise ValueError(f"the judge's reply cannot be read: {' '.join(text.split())[:80]!r}")

    def _reply(self, messages: list[dict[str, str]]) -> str:
        try:
            reply = self.client.chat.completions.create(model=self.model, messages=messages, temperature=0)
        except Exception as error:  # each client has its own; it has tried again by itself
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise Unreachable(f"the judge {self.model} does not reply ({reason})") from error
        return reply.choices[0].message.content or ""


def read(text: str) -> Verdict | None:
    """The verdict in a reply; None where there is none."""
    pred, score = _PRED.search(text), _SCORE.search(text)
    return Verdict(pred[1].lower() == "yes", int(score[1])) if pred and score else None


def openai_client(base_url: str | None = None) -> Any:
    """A client of the openai package, which finds its key in the environment (OPENAI_API_KEY)."""
    try:
        import openai  # here: nothing else needs it
    except ImportError:
        raise ValueError("--judge openai needs the openai package: pip install openai") from None
    try:
        return openai.OpenAI(base_url=base_url)
    except openai.OpenAIError as error:
        raise ValueError(f"--judge openai: {str(error).splitlines()[0]}") from None
