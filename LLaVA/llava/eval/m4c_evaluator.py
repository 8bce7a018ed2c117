"""Soft accuracy of short answers, by the published rules of the VQA challenge (EvalAI), and ANLS of ST-VQA.

An answer counts by how many of ten people gave it, after both are normalised: lower case, punctuation off, number words
to digits, articles away, apostrophes of contractions restored. TextVQA, VizWiz and VQAv2 are scored this way.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

_ARTICLES = {"a", "an", "the"}
_DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
_NUMBERS = {word: str(number) for number, word in enumerate(_DIGITS)} | {"none": "0"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
# Every apostrophe may be missing, of two either one: "couldnt", "couldn'tve" and "couldnt've" are known.
_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
    someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
    they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
    where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
    'ow's'at y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _without_one(word: str) -> set[str]:
    """The word without one of its apostrophes."""
    return {word[:i] + word[i + 1 :] for i, letter in enumerate(word) if letter == "'"}


_RESTORED = {bare: word for word in _CONTRACTIONS.split() for bare in _without_one(word)}


class EvalAIAnswerProcessor:
    """Normalises an answer: ``EvalAIAnswerProcessor()("The Two dogs.") == "2 dogs"``."""

    def __call__(self, item: Any) -> str:
        return self.process_digit_article(self.process_punctuation(self.word_tokenize(str(item))))

    def word_tokenize(self, word: str) -> str:
        word = word.lower().replace(",", "").replace("?", "").replace("'s", " 's")
        return word.replace("\n", " ").replace("\t", " ").strip()

    def process_punctuation(self, text: str) -> str:
        """A mark at the edge of a word goes, one inside becomes a blank; where a number has commas, all go."""
        commas = re.search(r"\d,+\d", text) is not None
        out = text
        for mark in _PUNCTUATION:
            edge = commas or f"{mark} " in text or f" {mark}" in text
            out = out.replace(mark, "" if edge else " ")
        return re.sub(r"\.(?!\d)", "", out)

    def process_digit_article(self, text: str) -> str:
        words = (_NUMBERS.get(word, word) for word in text.lower().split())
        return " ".join(_RESTORED.get(word, word) for word in words if word not in _ARTICLES)


class TextVQAAccuracyEvaluator:
    """Mean soft accuracy: an answer scores the mean, over each person left out, of min(1, others who gave it / 3)."""

    def __init__(self) -> None:
        self.answer_processor = EvalAIAnswerProcessor()

    def scores(self, given: Sequence[str]) -> dict[str, float]:
        """The score of each answer that people gave, normalised."""
        words = [self.answer_processor(answer) for answer in given]
        out = {}
        for word in set(words):
            same = words.count(word)
            # Left out once for each person: those who gave it see one fewer of it.
            points = [min(1.0, (same - (other == word)) / 3) for other in words]
            out[word] = sum(points) / len(points)
        return out

    def eval_pred_list(self, pred_list: Sequence[dict[str, Any]]) -> float:
        """Mean over ``{"pred_answer": text, "gt_answers": texts}``; 0 to 1."""
        points = [
            self.scores(entry["gt_answers"]).get(self.answer_processor(entry["pred_answer"]), 0.0)
            for entry in pred_list
        ]
        return mean(points)


class STVQAAccuracyEvaluator:
    """Share of answers that equal one of those given."""

    def __init__(self) -> None:
        self.answer_processor = EvalAIAnswerProcessor()

    def eval_pred_list(self, pred_list: Sequence[dict[str, Any]]) -> float:
        clean = self.answer_processor
        return mean([clean(e["pred_answer"]) in {clean(a) for a in e["gt_answers"]} for e in pred_list])


class STVQAANLSEvaluator:
    """Mean of 1 - edit distance / length, for the nearest of the answers given; below a half it counts 0."""

    def get_anls(self, first: str, second: str) -> float:
        first, second = first.lower().strip(), second.lower().strip()
        longer = max(len(first), len(second))
        share = 1 - edit_distance(first, second) / longer if longer else 1.0
        return share if share >= 0.5 else 0.0

    def eval_pred_list(self, pred_list: Sequence[dict[str, Any]]) -> float:
        return mean([max(self.get_anls(e["pred_answer"], a) for a in e["gt_answers"]) for e in pred_list])


def edit_distance(first: str, second: str) -> int:
    """Levenshtein: fewest insertions, deletions and replacements."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        above, row[0] = row[0], i
        for j, b in enumerate(second, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (a != b))
    return row[-1]


def mean(values: Sequence[float]) -> float:
    """ValueError where there is nothing to average."""
    if not values:
        raise ValueError("there is nothing to score: no answers")
    return sum(values) / len(values)
