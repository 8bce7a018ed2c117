"""Answers files to what servers and benchmarks want, and benchmarks to question files.

``python -m llava.eval.convert gqa --src answers.jsonl --dst predictions.json``; ``-h`` lists the others. The files
``scripts/convert_*.py`` of the original repository call these.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from llava.eval.files import check_fields, json_list, json_rows, read_json, table_rows, write_json, write_text
from llava.eval.m4c_evaluator import EvalAIAnswerProcessor
from llava.eval.metrics import answers_of, by_question, complete, finish, percent
from llava.eval.xlsx import write_xlsx

# What MMBench's server does not want back: the picture, and notes about the question.
_MMBENCH_DROPS = ("hint", "category", "source", "image", "comment", "l2-category")
_LETTERS = "ABCDE"


def gqa(args: argparse.Namespace) -> None:
    """[{"questionId", "prediction"}], lower case and without a final period, as GQA's own scorer reads it."""
    rows = [{"questionId": r["question_id"], "prediction": r["text"].rstrip(".").lower()} for r in answers_of(args.src)]
    write_json(args.dst, rows)


def mmvet(args: argparse.Namespace) -> None:
    """{"v1_<question>": answer}, for MM-Vet's server."""
    write_json(args.dst, {f"v1_{row['question_id']}": row["text"] for row in answers_of(args.src)}, indent=2)


def mmbench(args: argparse.Namespace) -> None:
    """A spreadsheet: the question table without pictures, with a column ``prediction``."""
    source = Path(args.result_dir) / f"{args.experiment}.jsonl"
    # Of several rounds the first has the options in the table's order.
    answers = {row["question_id"]: row["text"] for row in answers_of(str(source)) if not row.get("round_id")}
    rows = list(table_rows(args.annotation_file, needs=("index",)))
    indices = [_integer(row["index"]) for row in rows]
    complete(sum(index in answers for index in indices), len(rows), source.name)
    names = [name for name in (rows[0] if rows else {}) if name not in _MMBENCH_DROPS]
    at = min(6, len(names))
    table = []
    for index, row in zip(indices, rows, strict=True):
        cells: list[Any] = [index if name == "index" else row[name] for name in names]
        table.append([*cells[:at], answers[index], *cells[at:]])
    header = [*names[:at], "prediction", *names[at:]]
    write_xlsx(Path(args.upload_dir) / f"{args.experiment}.xlsx", header, table)


def vizwiz(args: argparse.Namespace) -> None:
    """[{"image", "answer"}] with normalised answers, for VizWiz's server."""
    asked = list(json_rows(args.annotation_file, needs=("question_id", "image")))
    answers = by_question(answers_of(args.result_file))
    complete(sum(row["question_id"] in answers for row in asked), len(asked), args.result_file)
    clean = EvalAIAnswerProcessor()
    out = [{"image": row["image"], "answer": clean(answers[row["question_id"]]["text"])} for row in asked]
    write_json(args.result_upload_file, out)


def vqav2(args: argparse.Namespace) -> None:
    """[{"question_id", "answer"}] with normalised answers for all of VQAv2's test questions: unasked ones are empty."""
    place = Path(args.dir)
    answers = by_question(answers_of(str(place / "answers" / args.split / args.ckpt / "merge.jsonl")))
    clean = EvalAIAnswerProcessor()
    out = []
    for row in json_rows(place / "llava_vqav2_mscoco_test2015.jsonl", needs=("question_id",)):
        name = row["question_id"]
        out.append({"question_id": name, "answer": clean(answers[name]["text"]) if name in answers else ""})
    write_json(place / "answers_upload" / args.split / f"{args.ckpt}.json", out)


def seed(args: argparse.Namespace) -> None:
    """Prints SEED-Bench accuracy (an answer must be the letter), and writes {"question_id", "prediction"} lines."""
    data = read_json(args.annotation_file)
    check_fields(data, ("questions", "question_type"), args.annotation_file)
    answers = {str(name): row["text"] for name, row in by_question(answers_of(args.result_file)).items()}
    names = {number: name for name, number in data["question_type"].items()}
    for kind in (None, "image", "video"):
        asked = [one for one in data["questions"] if kind in (None, one["data_type"])]
        right = [answers.get(str(one["question_id"])) == one["answer"] for one in asked]
        print(f"{kind or 'total'} accuracy: {percent(sum(right), len(asked)):.2f}% ({sum(right)} of {len(asked)})")
        for number in sorted({one["question_type_id"] for one in asked}):
            part = [ok for ok, one in zip(right, asked, strict=True) if one["question_type_id"] == number]
            print(f"{names.get(number, number)}: {percent(sum(part), len(part)):.2f}%")
        print()
    found = [one for one in data["questions"] if str(one["question_id"]) in answers]
    complete(len(found), len(data["questions"]), args.result_file)
    lines = [{"question_id": one["question_id"], "prediction": answers[str(one["question_id"])]} for one in found]
    write_text(args.result_upload_file, _lines(lines))


def sqa(args: argparse.Namespace) -> None:
    """A split of ScienceQA as a list of conversations: questions for ``model_vqa_science``, or training data.

    In --prompt-format, letters before the hyphen say what the question holds (Context, Question, Multiple options),
    those after it the answer's (Answer, Lecture, Explanation). Options stand one to a line, "A. text", as LLaVA-1.5 is
    asked; an empty context is left out.
    """
    base = Path(args.base_dir)
    splits, problems = read_json(base / "pid_splits.json"), read_json(base / "problems.json")
    check_fields(splits, (args.split,), str(base / "pid_splits.json"))
    asks, _, answers = args.prompt_format.partition("-")
    if not asks or not answers or set(asks) - set("CQM") or set(answers) - set("ALE"):
        raise ValueError(f"--prompt-format {args.prompt_format}: letters of CQM, a hyphen, letters of ALE; as CQM-A")
    rows = []
    for pid in splits[args.split]:
        check_fields(problems.get(pid), ("question", "choices", "answer"), f"problem {pid}")
        problem = problems[pid]
        question = "\n".join(filter(None, (_part_of_question(problem, part) for part in asks)))
        answer = " ".join(filter(None, (_part_of_answer(problem, part) for part in answers)))
        row = {"id": pid} | ({"image": f"{pid}/{problem['image']}"} if problem.get("image") else {})
        value = f"{question}\n<image>" if problem.get("image") else question
        rows.append(row | {"conversations": [{"from": "human", "value": value}, {"from": "gpt", "value": answer}]})
    write_json(args.dst or base / f"llava_{args.split}_{args.prompt_format}.json", rows, indent=2)


def _part_of_question(problem: dict[str, Any], part: str) -> str:
    if part == "C":
        return f"Context: {problem['hint']}" if problem.get("hint") else ""
    if part == "Q":
        return problem["question"]
    return "\n".join(f"{letter}. {choice}" for letter, choice in zip(_LETTERS, problem["choices"], strict=False))


def _part_of_answer(problem: dict[str, Any], part: str) -> str:
    if part == "A":
        return f"The answer is {_LETTERS[problem['answer']]}."
    return (problem.get("lecture" if part == "L" else "solution") or "").replace("\n", "\\n")


def ocrbench(args: argparse.Namespace) -> None:
    """OCRBench.json as questions for ``model_vqa_loader``, numbered: its ids are those of the data sets it is made of,
    and many stand for two or three rows."""
    rows = json_list(args.src, needs=("question", "image_path"))
    asked = [{"question_id": n, "image": r["image_path"], "text": r["question"]} for n, r in enumerate(rows)]
    write_text(args.dst, _lines(asked))


def _lines(rows: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _integer(text: str) -> int | str:
    return int(text) if text.isdigit() else text


# Per conversion: what does it, and its options with their defaults (True: it must be given).
_COMMANDS: dict[Callable[[argparse.Namespace], None], dict[str, Any]] = {
    gqa: {"--src": True, "--dst": True},
    mmbench: {"--annotation-file": True, "--result-dir": True, "--upload-dir": True, "--experiment": True},
    mmvet: {"--src": True, "--dst": True},
    ocrbench: {"--src": True, "--dst": True},
    seed: {"--annotation-file": True, "--result-file": True, "--result-upload-file": True},
    sqa: {"--base-dir": True, "--split": "test", "--prompt-format": "CQM-A", "--dst": None},
    vizwiz: {"--annotation-file": True, "--result-file": True, "--result-upload-file": True},
    vqav2: {"--dir": "./playground/data/eval/vqav2", "--ckpt": True, "--split": True},
}


def main(argv: list[str] | None = None) -> int:
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m llava.eval.convert", description=__doc__, formatter_class=shape)
    commands = parser.add_subparsers(required=True, metavar="WHAT")
    for work, options in _COMMANDS.items():
        doc = (work.__doc__ or "").strip()
        one = commands.add_parser(work.__name__, help=doc.splitlines()[0], description=doc, formatter_class=shape)
        for flag, default in options.items():
            one.add_argument(flag, **({"required": True} if default is True else {"default": default}))
        one.set_defaults(work=work)
    args = parser.parse_args(argv)
    return finish(lambda: args.work(args))


if __name__ == "__main__":
    sys.exit(main())
