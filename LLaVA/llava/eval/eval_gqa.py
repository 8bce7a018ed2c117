"""GQA accuracy: ``python -m llava.eval.eval_gqa --questions testdev_balanced_questions.json --predictions p.json``.

The share of answers that equal the right one, as GQA's own scorer counts; predictions as ``llava.eval.convert gqa``
writes them.
"""

from __future__ import annotations

import sys

from llava.eval.files import check_fields, json_list, read_json
from llava.eval.metrics import complete, finish, make_parser, percent


def evaluate(questions_file: str, predictions_file: str) -> tuple[int, float]:
    """Number of questions, and percent right."""
    questions = read_json(questions_file)
    check_fields(questions, (), questions_file)
    rows = json_list(predictions_file, needs=("questionId", "prediction"))
    said = {str(row["questionId"]): row["prediction"].strip() for row in rows}
    complete(sum(name in said for name in questions), len(questions), predictions_file)
    right = sum(said[name] == str(one["answer"]).lower() for name, one in questions.items())
    return len(questions), percent(right, len(questions))


def main(argv: list[str] | None = None) -> int:
    parser = make_parser("llava.eval.eval_gqa", __doc__)
    parser.add_argument("--questions", required=True)
    parser.add_argument("--predictions", required=True)
    args = parser.parse_args(argv)
    return finish(lambda: print("Samples: {}\nAccuracy: {:.2f}%".format(*evaluate(args.questions, args.predictions))))


if __name__ == "__main__":
    sys.exit(main())
