"""Answer ScienceQA: ``python -m llava.eval.model_vqa_science --question-file llava_test_CQM-A.json ...``.

Questions are one JSON list ``{"id", "conversations", "image" (optional)}``, as ``llava.eval.convert sqa`` writes it;
the first turn is asked. ``--single-pred-prompt`` asks for the letter alone. Answers as those of ``model_vqa_loader``.
"""

from __future__ import annotations

import argparse
import sys

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.eval.answering import Question, make_parser
from llava.eval.files import json_list
from llava.eval.model import LETTER_PROMPT, ask_pictures, picture_question


def questions(args: argparse.Namespace) -> list[Question]:
    rows = json_list(args.question_file, needs=("id", "conversations"))
    return [_question(args, number, row) for number, row in enumerate(rows)]


def _question(args: argparse.Namespace, number: int, row: dict) -> Question:
    try:
        text = row["conversations"][0]["value"]
    except (LookupError, TypeError):
        raise ValueError(f"{args.question_file}, entry {number}: its conversation has no first turn") from None
    text = text.replace(DEFAULT_IMAGE_TOKEN, "").strip()
    if args.single_pred_prompt:
        text += f"\n{LETTER_PROMPT}"
    image = row.get("image")
    # eval_science_qa and its original tell from the prompt whether there was a picture.
    prompt = f"{DEFAULT_IMAGE_TOKEN}\n{text}" if image else text
    return picture_question(args, {"question_id": row["id"]}, prompt, text, image=image or None)


def main(argv: list[str] | None = None) -> int:
    parser = make_parser("llava.eval.model_vqa_science", __doc__, 1024, "tables/question.json")
    parser.add_argument("--single-pred-prompt", action="store_true", help="ask for the option's letter alone")
    parser.add_argument("--answer-prompter", action="store_true", help="no effect; old scripts give it")
    return ask_pictures(parser.parse_args(argv), questions)


if __name__ == "__main__":
    sys.exit(main())
