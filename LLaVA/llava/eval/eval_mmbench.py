"""MMBench without its server: ``python -m llava.eval.eval_mmbench --annotation-file t.tsv --result-file a.jsonl``.

For splits whose table has a column ``answer``, as dev. An answer counts by its letter (``eval_science_qa.letter``; a
period may follow it); with ``--all-rounds`` answers, a question is right if every round is. The server lets a GPT read
answers that have no letter, so its number can be higher.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from typing import Any

from llava.eval.eval_science_qa import OPTIONS, letter
from llava.eval.files import table_rows
from llava.eval.metrics import answers_of, complete, finish, make_parser, percent

LETTERS = OPTIONS[:4]


def evaluate(annotation_file: str, result_file: str) -> tuple[int, float]:
    """Number of questions, and percent right."""
    truth = {row["index"]: row["answer"] for row in table_rows(annotation_file, needs=("index", "answer"))}
    rounds: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in answers_of(result_file, needs=("question_id", "text", "option_char")):
        rounds[str(row["question_id"])].append(row)
    complete(sum(index in rounds for index in truth), len(truth), result_file)
    right = sum(all(chosen(row) == truth[index] for row in rounds[index]) for index in truth)
    return len(truth), percent(right, len(truth))


def chosen(row: dict[str, Any]) -> str | None:
    """The letter, in the table, of the option that an answer names."""
    said = letter(row["text"].strip().removesuffix("."), LETTERS)
    known = dict(zip(LETTERS, row["option_char"], strict=False))
    return known.get(said)


def main(argv: list[str] | None = None) -> int:
    parser = make_parser("llava.eval.eval_mmbench", __doc__)
    parser.add_argument("--annotation-file", required=True)
    parser.add_argument("--result-file", required=True)
    args = parser.parse_args(argv)
    return finish(
        lambda: print("Samples: {}\nAccuracy: {:.2f}%".format(*evaluate(args.annotation_file, args.result_file)))
    )


if __name__ == "__main__":
    sys.exit(main())
