"""OCRBench: ``python -m llava.eval.eval_ocrbench --annotation-file OCRBench.json --result-file answers.jsonl``.

An answer is right if it contains one of those expected, case and line breaks aside; for HME100k (formulas) with case
and without blanks. Answers belong to rows by number, as ``llava.eval.convert ocrbench`` asks them: the file's own ids
repeat. The score is the number of right answers, of 1000 in the whole benchmark.
"""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

from llava.eval.files import json_list
from llava.eval.metrics import answers_of, by_question, complete, finish, make_parser

_FORMULAS = "HME100k"


def is_right(text: str, expected: Any, formula: bool = False) -> bool:
    expected = expected if isinstance(expected, list) else [expected]
    return any(_plain(str(one), formula) in _plain(text, formula) for one in expected)


def _plain(text: str, formula: bool) -> str:
    text = text.strip().replace("\n", " ")
    return text.replace(" ", "") if formula else text.lower()


def evaluate(annotation_file: str, result_file: str) -> dict[str, tuple[int, int]]:
    """(right, asked) for each type of question."""
    rows = json_list(annotation_file, needs=("answers", "type", "dataset_name"))
    answers = by_question(answers_of(result_file))
    complete(sum(number in answers for number in range(len(rows))), len(rows), result_file)
    right, asked = Counter(), Counter()
    for number, row in enumerate(rows):
        asked[row["type"]] += 1
        right[row["type"]] += is_right(answers[number]["text"], row["answers"], row["dataset_name"] == _FORMULAS)
    return {kind: (right[kind], count) for kind, count in asked.items()}


def main(argv: list[str] | None = None) -> int:
    parser = make_parser("llava.eval.eval_ocrbench", __doc__)
    parser.add_argument("--annotation-file", required=True)
    parser.add_argument("--result-file", required=True)
    args = parser.parse_args(argv)

    def work() -> None:
        found = evaluate(args.annotation_file, args.result_file)
        for kind, (right, asked) in found.items():
            print(f"{kind}: {right} of {asked}")
        right, asked = (sum(column) for column in zip(*found.values(), strict=True))
        print(f"Final Score: {right} of {asked}")

    return finish(work)


if __name__ == "__main__":
    sys.exit(main())
