"""Answer questions about videos: ``python -m llava_next.eval.video_qa --video-dir videos --gt-file-question q.json``.

For TGIF-QA, MSVD-QA, MSRVTT-QA and ActivityNet-QA in the files of Video-ChatGPT and Video-LLaVA: questions are a JSON
list ``{"question_id", "video_name", "question"}``, answers (``--gt-file-answers``, not needed to ask) a list
``{"question_id", "answer"}``. They are matched by ``question_id``, or by place where they have none. Writes JSON lines
``{"id", "question", "answer", "pred"}`` to ``<output-dir>/<output-name>.json`` or ``--answers-file``. Batches,
interruptions and videos that cannot be read are as ``llava.eval.answering`` says.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from llava.eval.answering import Question, Report, add_options, finish, run
from llava.eval.files import folder, json_list
from llava.eval.model import decode, generation_options, model_settings, per_sample
from llava.eval.run_llava import positive
from llava_next.mm_utils import FRAMES, load_video, process_video
from llava_next.model.builder import LLAVA
from llava_next.processing import prepare, seen_of_frames
from llava_next.prompts import build_prompt
from llava_next.run import EXAMPLE, Asker, add_config_flag, family_of
from mob import RetainedPatches
from mob.audit.writing import layers_of, shown
from mob.video import VideoError

ENDINGS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".gif")


@dataclass(frozen=True)
class Clip:
    """A video: its frames, first uint8 (F, height, width, 3), then as the model takes them, (F, 3, H, W); (width,
    height) of the file; and its name below --video-dir."""

    frames: Any
    size: tuple[int, int]
    name: str


class Videos:
    """An ``Answerer`` about one video each."""

    def __init__(self, args: argparse.Namespace) -> None:
        _check_model(args)
        self.args = args
        self.asker = Asker(args)
        model = self.asker.model
        model.config.MoB_config = self.asker.mob
        model.pruning.record = args.log_retained_patches is not None
        self.settings = model_settings(args.model_path, model, self.asker.mob)

    def process(self, media: Clip) -> Clip:
        return replace(media, frames=process_video(media.frames, self.asker.image_processor, None))

    def shown(self, media: Clip, files: Sequence[str]) -> dict[str, Any]:
        asker = self.asker
        clip = shown(media.size, video=media.name, box=seen_of_frames(media.size, asker.image_processor))
        return {"pictures": [clip], "layers": layers_of(asker.model.config)}

    def answer(self, queries: Sequence[str], media: Sequence[Clip]) -> list[tuple[str, RetainedPatches | None]]:
        asker, model = self.asker, self.asker.model
        prompts = [build_prompt(q, 0, 1, asker.tokenizer, model.config, self.args.conv_mode) for q in queries]
        videos = [[one.frames] for one in media]
        given = prepare(prompts, asker.tokenizer, asker.image_processor, model.config, videos=videos)
        given = {k: v.to(model.device, model.dtype if v.is_floating_point() else None) for k, v in given.items()}
        model.pruning.clear()
        with torch.inference_mode():
            out = model.generate(**given, **generation_options(self.args))
        new = out[:, given["input_ids"].shape[1] :]
        texts = decode(new, asker.tokenizer, model.generation_config.eos_token_id)
        return list(zip(texts, per_sample(model.pruning.records, len(prompts)), strict=True))


def questions(args: argparse.Namespace) -> list[Question]:
    rows = json_list(args.gt_file_question, needs=("video_name", "question"))
    truth = _answers(args.gt_file_answers, rows)
    place = folder(args.video_dir, "--video-dir")
    out = []
    for number, (row, answer) in enumerate(zip(rows, truth, strict=True)):
        line = {"id": row.get("question_id", number), "question": row["question"], "answer": answer, "pred": None}
        query = row["question"] + args.suffix
        out.append(Question(line, query, partial(_load, place, str(row["video_name"]), args.frames), slot="pred"))
    return out


def _answers(path: str | None, asked: list[dict[str, Any]]) -> list[Any]:
    """The right answer of each question; None where no file has them."""
    if path is None:
        return [None] * len(asked)
    rows = json_list(path, needs=("answer",))
    if all("question_id" in row for row in rows + asked):
        known = {row["question_id"]: row["answer"] for row in rows}
        if missing := [row["question_id"] for row in asked if row["question_id"] not in known]:
            raise ValueError(f"{path} has no answer to question {missing[0]} ({len(missing)} are missing)")
        return [known[row["question_id"]] for row in asked]
    if len(rows) != len(asked):
        raise ValueError(f"{path} has {len(rows)} answers to {len(asked)} questions, and no question_id to match them")
    return [row["answer"] for row in rows]


def _load(place: Path, name: str, count: int) -> Clip:
    file = find_video(place, name)
    frames = load_video(file, count)
    return Clip(frames, (frames.shape[2], frames.shape[1]), file.relative_to(place).as_posix())


def find_video(place: Path, name: str) -> Path:
    """The file of a video; ActivityNet's have a ``v_`` before their names, and most questions leave out the ending."""
    for head in ("", "v_"):
        for ending in ("", *ENDINGS):
            file = place / f"{head}{name}{ending}"
            if file.is_file():
                return file
    raise VideoError(f"there is no video {name} in {place} ({', '.join(ENDINGS)})")


def _check_model(args: argparse.Namespace) -> None:
    if family_of(args) == LLAVA:
        raise ValueError(f"--model-path {args.model_path}: videos need a model such as {EXAMPLE}")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m llava_next.eval.video_qa",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--video-dir", "--video_dir", required=True, help="where the videos are")
    parser.add_argument("--gt-file-question", "--gt_file_question", required=True, help="test_q.json")
    parser.add_argument("--gt-file-answers", "--gt_file_answers", help="test_a.json")
    parser.add_argument("--output-dir", "--output_dir")
    parser.add_argument("--output-name", "--output_name", help="without .json")
    parser.add_argument("--answers-file", help="instead of these two")
    parser.add_argument("--frames", type=positive, default=FRAMES, help=f"frames read of each video ({FRAMES})")
    parser.add_argument("--suffix", default="", help="text behind each question, such as a wish for a short answer")
    for flag in ("cache-dir", "model-max-length"):
        parser.add_argument(f"--{flag}", f"--{flag.replace('-', '_')}", help="no effect; old scripts give it")
    add_config_flag(parser)
    add_options(parser, length=1024, temperature=0.0)
    args = parser.parse_args(argv)
    if args.answers_file is None:
        if args.output_dir is None or args.output_name is None:
            parser.error("give --answers-file, or --output-dir and --output-name")
        args.answers_file = str(Path(args.output_dir) / f"{args.output_name}.json")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)

    def work() -> Report:
        files = [file for file in (args.gt_file_question, args.gt_file_answers) if file]
        return run(args, questions(args), lambda: Videos(args), files)

    return finish(args, work)


if __name__ == "__main__":
    sys.exit(main())
