"""POPE: does the model name objects that are not there? ``python -m llava.eval.eval_pope --annotation-dir coco ...``.

An answer is "no" if its first sentence holds one of the words No, no, not; else it is "yes". Prints, for each category,
the four counts, accuracy, precision, recall, F1 (of "yes") and the share of "yes".
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llava.eval.files import folder, json_rows
from llava.eval.metrics import answers_of, by_question, complete, finish, make_parser

_HEAD, _TAIL = "coco_pope_", ".json"


@dataclass(frozen=True)
class Counts:
    """Of "yes" answers: true and false positives, true and false negatives."""

    TP: int
    FP: int
    TN: int
    FN: int

    @property
    def accuracy(self) -> float:
        return _share(self.TP + self.TN, self.TP + self.FP + self.TN + self.FN)

    @property
    def precision(self) -> float:
        return _share(self.TP, self.TP + self.FP)

    @property
    def recall(self) -> float:
        return _share(self.TP, self.TP + self.FN)

    @property
    def f1(self) -> float:
        return _share(2 * self.TP, 2 * self.TP + self.FP + self.FN)

    @property
    def yes_ratio(self) -> float:
        return _share(self.TP + self.FP, self.TP + self.FP + self.TN + self.FN)


def says_yes(text: str) -> bool:
    words = text.split(".")[0].replace(",", "").split(" ")
    return not {"No", "no", "not"} & set(words)


def count(answers: Sequence[bool], labels: Sequence[bool]) -> Counts:
    """True for "yes"."""
    pairs = list(zip(answers, labels, strict=True))
    return Counts(*(pairs.count(pair) for pair in ((True, True), (True, False), (False, False), (False, True))))


def evaluate(annotation_dir: str, question_file: str, result_file: str) -> dict[str, Counts]:
    """Counts of each category that has an annotation file ``coco_pope_<category>.json`` (JSON lines with ``label``)."""
    questions = list(json_rows(question_file, needs=("question_id", "category")))
    answers = by_question(answers_of(result_file))
    files = sorted(folder(annotation_dir, "--annotation-dir").glob(f"{_HEAD}*{_TAIL}"))
    if not files:
        raise ValueError(f"--annotation-dir {annotation_dir}: there is no file {_HEAD}*{_TAIL} in it")
    out = {}
    for file in files:
        category = file.name[len(_HEAD) : -len(_TAIL)]
        asked = [row["question_id"] for row in questions if row["category"] == category]
        labels = [_label(row["label"]) for row in json_rows(file, needs=("label",))]
        if len(asked) != len(labels):
            raise ValueError(f"{question_file} has {len(asked)} {category} questions, {file.name} {len(labels)} labels")
        complete(sum(one in answers for one in asked), len(asked), Path(result_file).name)
        out[category] = count([says_yes(answers[one]["text"]) for one in asked], labels)
    return out


def _label(text: str) -> bool:
    return str(text).strip().lower() != "no"


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def report(category: str, one: Counts) -> None:
    print(f"Category: {category}, # samples: {one.TP + one.FP + one.TN + one.FN}")
    print(f"TP\tFP\tTN\tFN\t\n{one.TP}\t{one.FP}\t{one.TN}\t{one.FN}")
    print(f"Accuracy: {one.accuracy}\nPrecision: {one.precision}\nRecall: {one.recall}\nF1 score: {one.f1}")
    print(f"Yes ratio: {one.yes_ratio}")
    print(f"{one.f1:.3f}, {one.accuracy:.3f}, {one.precision:.3f}, {one.recall:.3f}, {one.yes_ratio:.3f}")
    print("====================================")


def main(argv: list[str] | None = None) -> int:
    parser = make_parser("llava.eval.eval_pope", __doc__)
    for flag in ("--annotation-dir", "--question-file", "--result-file"):
        parser.add_argument(flag, required=True)
    args = parser.parse_args(argv)

    def work() -> None:
        found = evaluate(args.annotation_dir, args.question_file, args.result_file)
        for category, one in found.items():
            report(category, one)
        print(f"Mean F1: {sum(one.f1 for one in found.values()) / len(found):.4f}")

    return finish(work)


if __name__ == "__main__":
    sys.exit(main())
