"""TextVQA: ``python -m llava.eval.eval_textvqa --annotation-file TextVQA_0.5.1_val.json --result-file answers.jsonl``.

An answer is matched with its question by the picture's id and the question inside the prompt; accuracy is soft, see
``llava.eval.m4c_evaluator``. ``--result-dir`` scores every .jsonl of a folder.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from llava.eval.files import check_fields, folder, read_json
from llava.eval.m4c_evaluator import TextVQAAccuracyEvaluator
from llava.eval.metrics import answers_of, finish, make_parser

_OCR = "Reference OCR token:"


def prompt_processor(prompt: str) -> str:
    """The question inside a prompt, in lower case.

    Prompts end in a line that asks for a short answer; a line with OCR tokens may stand before or after the question.
    """
    if prompt.startswith("OCR tokens: "):
        found = re.search(r"Question: (.*?) Short answer:", prompt, re.DOTALL)
        if found is None:
            raise ValueError(f"no question in the prompt {prompt[:80]!r}")
        return found[1].lower()
    lines = [line for line in prompt.split("\n") if not line.startswith(_OCR)]
    if len(lines) != 2:
        raise ValueError(f"the prompt {prompt[:80]!r} is not a question and a line that asks for a short answer")
    return lines[0].lower()


def evaluate(annotation_file: str, result_file: str) -> tuple[int, float]:
    """Number of answers, and their mean accuracy in percent."""
    data = read_json(annotation_file)
    check_fields(data, ("data",), annotation_file)
    known: dict[tuple[Any, str], dict[str, Any]] = {}
    for number, one in enumerate(data["data"]):
        check_fields(one, ("image_id", "question", "answers"), f"{annotation_file}, entry {number}")
        known[one["image_id"], one["question"].lower()] = one
    entries = []
    for row in answers_of(result_file, needs=("question_id", "prompt", "text")):
        key = row["question_id"], prompt_processor(row["prompt"])
        if key not in known:
            raise ValueError(f"{result_file} answers {key[1]!r} about {key[0]}, which is not in {annotation_file}")
        entries.append({"pred_answer": row["text"], "gt_answers": known[key]["answers"]})
    return len(entries), 100 * TextVQAAccuracyEvaluator().eval_pred_list(entries)


def main(argv: list[str] | None = None) -> int:
    parser = make_parser("llava.eval.eval_textvqa", __doc__)
    parser.add_argument("--annotation-file", required=True)
    parser.add_argument("--result-file")
    parser.add_argument("--result-dir")
    args = parser.parse_args(argv)

    def work() -> None:
        files = [args.result_file] if args.result_file else []
        if args.result_dir:
            files += sorted(map(str, folder(args.result_dir, "--result-dir").glob("*.jsonl")))
        if not files:
            raise ValueError("give --result-file, or a --result-dir with .jsonl files in it")
        for file in files:
            count, accuracy = evaluate(args.annotation_file, file)
            print(f"{Path(file).stem}\nSamples: {count}\nAccuracy: {accuracy:.2f}%\n")

    return finish(work)


if __name__ == "__main__":
    sys.exit(main())
