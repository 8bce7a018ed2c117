"""Score answers about videos: ``python -m llava_next.eval.eval_video_qa --pred-path answers.json``.

Without a judge, two shares are counted, after the normalisation of the VQA challenge (lower case, no punctuation, no
articles, digits for number words; ``llava.eval.m4c_evaluator``):

exact     the answer is the right one
contains  the words of the right one stand in the answer, together and in their order

Both are stricter than the judged numbers of papers, and comparable with nothing but themselves. ``--judge openai
--judge-model gpt-4o-mini`` asks a judge, as papers do, for accuracy and a mean score from 0 to 5; its verdicts are kept
in ``--output-json`` (JSON lines), and an interrupted run continues. Exit code 1: the judge's replies to some answers
cannot be read; run it again to ask once more.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from llava.eval.files import folder, json_rows
from llava.eval.journal import opened
from llava.eval.m4c_evaluator import EvalAIAnswerProcessor, mean
from llava.eval.metrics import make_parser, percent, say
from llava_next.eval.judge import Judge, Unreachable, Verdict, openai_client

_ABOUT = ("question", "answer", "pred")


def exact(pred: str, answer: str) -> bool:
    clean = EvalAIAnswerProcessor()
    return clean(pred) == clean(answer)


def contains(pred: str, answer: str) -> bool:
    """An answer that is nothing but articles and punctuation is in no other."""
    clean = EvalAIAnswerProcessor()
    said, wanted = clean(pred), clean(answer)
    return bool(wanted) and f" {wanted} " in f" {said} " or said == wanted


def predictions(path: str) -> list[dict[str, Any]]:
    """The answers of a file, or of all .json and .jsonl files of a folder (the chunks of one run)."""
    files = [Path(path)]
    if files[0].is_dir():
        place = folder(path, "--pred-path")
        files = sorted(
            f
            for f in place.iterdir()
            if f.suffix in (".json", ".jsonl") and not {".settings", ".judged"} & {*f.suffixes}
        )
    rows = [row for file in files for row in json_rows(file, needs=("id", *_ABOUT))]
    if not rows:
        raise ValueError(f"--pred-path {path}: there are no answers")
    if any(row["answer"] is None for row in rows):
        raise ValueError(f"--pred-path {path}: no right answers in it; ask with --gt-file-answers")
    if failed := sum(1 for row in rows if row.get("error")):
        say(f"note: {failed} of {len(rows)} answers are empty, because their videos could not be read")
    return rows


def judged(rows: list[dict[str, Any]], judge: Callable[..., Verdict], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Verdicts ``{"id", "right", "score"}``, or ``{"id", "error"}``, in the order of the answers."""
    digest = hashlib.sha256(repr([[str(row[name]) for name in _ABOUT] for row in rows]).encode()).hexdigest()
    settings = {"answers": digest, "judge": args.judge, "judge_model": args.judge_model}
    keys = [{"id": row["id"]} for row in rows]

    def ask(row: dict[str, Any]) -> dict[str, Any]:
        try:
            verdict = judge(*(str(row[name]) for name in _ABOUT))
        except ValueError as error:
            return {"id": row["id"], "error": str(error)}
        return {"id": row["id"], "right": verdict.right, "score": verdict.score}

    with (
        opened(args.output_json, keys, settings, resume=args.resume) as journal,
        ThreadPoolExecutor(args.num_tasks) as pool,
    ):
        failed = [place for place, row in enumerate(journal.done) if "error" in row]
        for place, verdict in zip(failed, pool.map(ask, [rows[place] for place in failed]), strict=True):
            journal.replace({place: (verdict, None)})
        begun = len(journal.done)
        bar = tqdm(total=len(rows), initial=begun, unit="answer", desc="judge")
        with bar:
            for start in range(begun, len(rows), 4 * args.num_tasks):  # in parts: an error stops soon
                for verdict in pool.map(ask, rows[start : start + 4 * args.num_tasks]):
                    journal.write(verdict)
                    bar.update()
        return journal.done


def main(argv: list[str] | None = None, client: Callable[[str | None], Any] = openai_client) -> int:
    """``client`` makes the judge's client from --api-base."""
    args = parse(argv)
    try:
        rows = predictions(args.pred_path)
        for name, rule in (("exact", exact), ("contains", contains)):
            right = [rule(str(row["pred"]), str(row["answer"])) for row in rows]
            print(f"{name}: {percent(sum(right), len(right)):.2f}% ({sum(right)} of {len(right)})")
        if args.judge == "none":
            return 0
        return _report(judged(rows, Judge(client(args.api_base), args.judge_model), args), args)
    except (ValueError, Unreachable) as error:
        say(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        say("stopped: the verdicts so far are kept; run it again to go on")
        return 130


def _report(verdicts: list[dict[str, Any]], args: argparse.Namespace) -> int:
    known = [one for one in verdicts if "error" not in one]
    if known:
        right = sum(one["right"] for one in known)
        print(f"judge ({args.judge_model}) accuracy: {percent(right, len(known)):.2f}% ({right} of {len(known)})")
        print(f"judge ({args.judge_model}) score: {mean([one['score'] for one in known]):.2f}")
    if len(known) == len(verdicts):
        return 0
    say(f"error: {len(verdicts) - len(known)} replies of the judge cannot be read: run it again to ask once more")
    return 1


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser("llava_next.eval.eval_video_qa", __doc__)
    parser.add_argument("--pred-path", "--pred_path", required=True, help="file of video_qa, or a folder of its chunks")
    parser.add_argument("--judge", choices=("none", "openai"), default="none", help="(none)")
    parser.add_argument("--judge-model", help="the judge's name; needed with --judge")
    parser.add_argument("--api-base", "--api_base", help="address of another server with the same interface")
    parser.add_argument("--output-json", "--output_json", help="verdicts (<pred-path>.judged.jsonl)")
    parser.add_argument("--num-tasks", "--num_tasks", type=int, default=4, help="answers judged at a time (4)")
    parser.add_argument("--resume", action=argparse.BooleanOptionalAction, default=True, help="continue (yes)")
    args = parser.parse_args(argv)
    if args.judge != "none" and not args.judge_model:
        parser.error("--judge needs --judge-model, which also names the number that comes out")
    if args.num_tasks < 1:
        parser.error("--num-tasks must be at least 1")
    args.output_json = args.output_json or f"{args.pred_path.rstrip('/')}.judged.jsonl"
    return args


if __name__ == "__main__":
    sys.exit(main())
