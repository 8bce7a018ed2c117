"""ScienceQA: ``python -m llava.eval.eval_science_qa --base-dir scienceqa --result-file answers.jsonl ...``.

The answer is the letter if the text is a letter, or begins with one, a period and a blank, or says once "The answer
is X." (any character stands for the period, as in the original); anything else, and a missing answer, is wrong.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava.eval.files import check_fields, read_json, write_json
from llava.eval.metrics import answers_of, by_question, finish, make_parser, percent

FAILED = "FAILED"
OPTIONS = ["A", "B", "C", "D", "E"]


def letter(text: str, options: Sequence[str] = OPTIONS) -> str:
    """The letter that an answer means, or "FAILED"."""
    if text in options:
        return text
    if len(text) >= 3 and text[0] in options and text[1:3] == ". ":
        return text[0]
    found = re.findall(r"The answer is ([A-Z]).", text)
    return found[0] if len(found) == 1 else FAILED


def evaluate(base_dir: str, result_file: str, split: str = "test", options: Sequence[str] = OPTIONS) -> dict[str, Any]:
    """Lists ``correct`` and ``incorrect``, one analysis for each question of the split, and ``sqa``, the summary."""
    splits, problems = (read_json(Path(base_dir) / name) for name in ("pid_splits.json", "problems.json"))
    check_fields(splits, (split,), f"{base_dir}/pid_splits.json")
    check_fields(problems, splits[split], f"{base_dir}/problems.json")
    answers = {str(key): row for key, row in by_question(answers_of(result_file)).items()}
    out: dict[str, Any] = {"correct": [], "incorrect": []}
    results, outputs = {}, {}
    for pid in splits[split]:
        problem = problems[pid]
        given = answers.get(str(pid), {"text": FAILED, "prompt": "Unknown"})
        parsed = letter(given["text"], options)
        known = options[: len(problem["choices"])]
        results[pid] = known.index(parsed) if parsed in known else -1
        outputs[pid] = given["text"]
        right = results[pid] == problem["answer"]
        out["correct" if right else "incorrect"].append(
            {
                "question_id": pid,
                "parsed_ans": parsed,
                "ground_truth": options[problem["answer"]],
                "question": given.get("prompt", ""),
                "pred": given["text"],
                "is_multimodal": bool(problem.get("image")) or "<image>" in given.get("prompt", ""),
            }
        )
    correct, total = len(out["correct"]), len(splits[split])
    out["sqa"] = {"acc": percent(correct, total), "correct": correct, "count": total}
    out["sqa"] |= {"results": results, "outputs": outputs}
    return out


def image_accuracy(found: dict[str, Any]) -> float:
    """Percent right of the questions with a picture."""
    right, wrong = (sum(one["is_multimodal"] for one in found[name]) for name in ("correct", "incorrect"))
    return percent(right, right + wrong)


def main(argv: list[str] | None = None) -> int:
    parser = make_parser("llava.eval.eval_science_qa", __doc__)
    parser.add_argument("--base-dir", required=True, help="folder of problems.json and pid_splits.json")
    parser.add_argument("--result-file", required=True)
    parser.add_argument("--output-file", help="JSON: every question with what was right and said")
    parser.add_argument("--output-result", help="JSON: accuracy, and the index that each question got")
    parser.add_argument("--split", default="test", help="(test)")
    parser.add_argument("--options", nargs="+", default=OPTIONS, help="letters (A B C D E)")
    args = parser.parse_args(argv)

    def work() -> None:
        found = evaluate(args.base_dir, args.result_file, args.split, args.options)
        summary = found["sqa"]
        print(
            f"Total: {summary['count']}, Correct: {summary['correct']}, Accuracy: {summary['acc']:.2f}%, "
            f"IMG-Accuracy: {image_accuracy(found):.2f}%"
        )
        if args.output_file:
            write_json(args.output_file, {k: found[k] for k in ("correct", "incorrect")}, indent=2)
        if args.output_result:
            write_json(args.output_result, summary, indent=2)

    return finish(work)


if __name__ == "__main__":
    sys.exit(main())
