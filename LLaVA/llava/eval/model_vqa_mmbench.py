"""Answer MMBench: ``python -m llava.eval.model_vqa_mmbench --question-file mmbench_dev_20230712.tsv ...``.

Questions are a table ``index, question, hint, image (base64), A, B, C, D``; an image cell that is a number names the
row whose picture it shares. ``--all-rounds`` asks each question as often as it has options, which move up by one
each time. Answers as those of ``model_vqa_loader``, with ``round_id``, ``options`` and ``option_char``: the
letters that the options of this round have in the table.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

from llava.eval.answering import Question, make_parser
from llava.eval.files import table_rows
from llava.eval.model import LETTER_PROMPT, ask_pictures, picture_question

LETTERS = ["A", "B", "C", "D"]
LETTER_PROMPTS = {"en": LETTER_PROMPT, "cn": "请直接回答选项字母。"}
_NOTHING = ("", "nan", "none")


def questions(args: argparse.Namespace) -> list[Question]:
    rows = list(table_rows(args.question_file, needs=("index", "question", "image", "A")))
    pictures = {row["index"]: row["image"] for row in rows}
    return [question for row in rows for question in _rounds(args, row, pictures)]


def _rounds(args: argparse.Namespace, row: dict[str, str], pictures: dict[str, str]) -> Iterator[Question]:
    options = options_of(row)
    letters = LETTERS[: len(options)]
    asked = row["question"] if _nothing(row.get("hint")) else f"{row['hint']}\n{row['question']}"
    image = pictures.get(row["image"], row["image"])
    index = int(row["index"]) if row["index"].isdigit() else row["index"]
    for number in range(len(options) if args.all_rounds else 1):
        turned, chars = options[number:] + options[:number], letters[number:] + letters[:number]
        lines = [f"{letter}. {option}" for letter, option in zip(letters, turned, strict=True)]
        prompt = "\n".join([asked, *lines])
        query = f"{prompt}\n{LETTER_PROMPTS[args.lang]}" if args.single_pred_prompt else prompt
        key = {"question_id": index, "round_id": number}
        yield picture_question(args, key, prompt, query, inline=image, options=turned, option_char=chars)


def options_of(row: dict[str, str]) -> list[str]:
    """The options up to the first that is empty."""
    out = []
    for letter in LETTERS:
        if _nothing(row.get(letter)):
            break
        out.append(row[letter])
    return out


def _nothing(cell: str | None) -> bool:
    return cell is None or cell.strip().lower() in _NOTHING


def main(argv: list[str] | None = None) -> int:
    parser = make_parser("llava.eval.model_vqa_mmbench", __doc__, 1024, "tables/question.tsv")
    parser.add_argument("--all-rounds", action="store_true", help="ask with every rotation of the options")
    parser.add_argument("--single-pred-prompt", action="store_true", help="ask for the option's letter alone")
    parser.add_argument("--lang", choices=sorted(LETTER_PROMPTS), default="en", help="of that request (en)")
    return ask_pictures(parser.parse_args(argv), questions)


if __name__ == "__main__":
    sys.exit(main())
