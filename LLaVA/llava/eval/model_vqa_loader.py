"""Answer a file of questions about pictures: ``python -m llava.eval.model_vqa_loader --question-file q.jsonl ...``.

Questions are JSON lines ``{"question_id", "image", "text"}``, answers JSON lines ``{"question_id", "prompt", "text",
"answer_id", "model_id", "metadata"}`` in the same order. See ``llava.eval.answering`` for batches, interruptions and
pictures that cannot be read.
"""

from __future__ import annotations

import argparse
import sys

from llava.eval.answering import Question, make_parser
from llava.eval.files import json_rows
from llava.eval.model import ask_pictures, picture_question


def questions(args: argparse.Namespace) -> list[Question]:
    return [
        picture_question(args, {"question_id": row["question_id"]}, str(row["text"]), image=row.get("image"))
        for row in json_rows(args.question_file, needs=("question_id", "text"))
    ]


def main(argv: list[str] | None = None) -> int:
    args = make_parser("llava.eval.model_vqa_loader", __doc__, length=128).parse_args(argv)
    return ask_pictures(args, questions)


if __name__ == "__main__":
    sys.exit(main())
