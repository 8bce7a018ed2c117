"""What every ``model_vqa*`` command shares: questions in, answers out, in batches, continued after an interruption.

A command gives a list of ``Question`` and a few options of its own; here they are split into chunks, their pictures
read ahead in threads, asked in batches, and each answer is put on the disk before the next (``llava.eval.journal``).

Batches give what single questions give: each row is padded on the left, and sampling (``--temperature`` above 0)
asks one question at a time with a seed of its own. A batch that was cut short is asked again as a whole, so that a
continued run computes exactly what an undisturbed one does, in half precision too.

A picture that cannot be read does not stop a run: its answer is empty and has a field ``error``, the end of the run
counts them, and the exit code is 1. The same command, given again, asks these again and nothing else. Exit code 2 and
one line: options or files that are wrong.
"""

from __future__ import annotations

import argparse
import hashlib
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from llava.eval.journal import Journal, opened
from llava.eval.run_llava import bounded, positive, say
from mob import RetainedPatches
from mob.flags import add_mob_flags
from mob.media import ImageError

HOPELESS = 20  # a run whose first questions fail, all of them, has a wrong folder rather than bad pictures


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        row: the answer's line, in the order of its fields; None where the answer, or its id, will be put in.
        query: what the model is asked.
        load: reads what it is asked about, in a thread. Raises ImageError.
        slot: the field for the answer's text.
        files: names of the pictures, or of the video; none where they come without one.
    """

    row: dict[str, Any]
    query: str
    load: Callable[[], Any]
    slot: str = "text"
    files: tuple[str, ...] = ()

    def filled(self, text: str, name: str, error: str | None = None) -> dict[str, Any]:
        """The finished line; ``name`` is the answer's id."""
        given = {self.slot: text} | ({"answer_id": name} if "answer_id" in self.row else {})
        return self.row | given | ({"error": error} if error else {})

    @property
    def key(self) -> dict[str, Any]:
        """What an answer to this question must say."""
        return {name: value for name, value in self.row.items() if value is not None}

    @property
    def names(self) -> dict[str, Any]:
        """What the question is called."""
        return {name: self.row[name] for name in ("question_id", "round_id", "id") if name in self.row}


class Answerer(Protocol):
    """A model behind the commands: ``llava.eval.model.Llava``, ``llava_next.eval.video_qa.Videos``."""

    settings: dict[str, Any]

    def process(self, media: Any) -> Any:
        """Model inputs of what ``Question.load`` gave; runs in threads."""

    def answer(self, queries: Sequence[str], media: Sequence[Any]) -> list[tuple[str, RetainedPatches | None]]:
        """Texts, and what was kept, of one batch."""

    def shown(self, media: Any, files: Sequence[str]) -> dict[str, Any]:
        """What a record says beside what was kept: the pictures or the video, and the model's layers."""


@dataclass
class Report:
    """How a run ended: answers on the disk, and the places and reasons of those without one."""

    answers: int
    errors: dict[int, str] = field(default_factory=dict)


# ---------------------------------------------------------------------------------------------------------------
# Chunks


def chunk(count: int, chunks: int, index: int) -> range:
    """Chunk ``index`` of ``count`` questions: the ceiling of count / chunks each, the last ones fewer or none."""
    if not 0 <= index < chunks:
        raise ValueError(f"--chunk-idx {index} with --num-chunks {chunks}: chunks are counted from 0 to {chunks - 1}")
    size = math.ceil(count / chunks)
    return range(min(index * size, count), min((index + 1) * size, count))


# ---------------------------------------------------------------------------------------------------------------
# Asking


def answer_all(
    questions: Sequence[Question], numbers: range, journal: Journal, answerer: Answerer, args: argparse.Namespace
) -> Report:
    """Ask what has no answer yet; ``numbers`` are the questions' places in the whole, undivided list."""
    size = 1 if args.temperature > 0 else args.batch_size
    if size < args.batch_size:
        say("note: sampling (--temperature above 0) asks one question at a time")
    done = journal.done
    failed = {i: answer["error"] for i, answer in enumerate(done) if answer.get("error")}
    report = Report(len(done), dict(failed))
    plan = [sorted(failed)[i : i + size] for i in range(0, len(failed), size)]
    begun = len(done) - len(done) % size
    plan += [list(range(i, min(i + size, len(questions)))) for i in range(begun, len(questions), size)]
    plan = [part for part in plan if part[-1] >= len(done) or part[0] in failed]
    bar = tqdm(total=len(questions), initial=len(done), unit="question", desc=Path(args.answers_file).name)
    with bar:
        for places, media in _read_ahead(plan, questions, answerer, args.workers):
            torch.manual_seed(args.seed + numbers[places[0]])
            texts = _ask(places, media, questions, answerer)
            news = {}
            for place, (text, record, error) in zip(places, texts, strict=True):
                row = questions[place].filled(text, journal.answer_id(place), error)
                kept = questions[place].names | {"retained_patches": record}
                if place in failed:
                    news[place] = row, kept
                elif place >= len(done):  # others are on the disk: they were asked again for the sake of the batch
                    journal.write(row, kept)
                    bar.update()
                else:
                    continue
                report.errors.pop(place, None)
                if error:
                    report.errors[place] = error
            if any(row != done[place] for place, (row, _) in news.items()):
                journal.replace(news)
            _give_up_if_hopeless(report, len(done))
    report.answers = len(done)
    return report


def _ask(places: list[int], media: list[Any], questions: Sequence[Question], answerer: Answerer) -> list[tuple]:
    """(text, entry of the log, error) of each place; those whose media could not be read are not asked."""
    good = [at for at, one in enumerate(media) if not isinstance(one, ImageError)]
    out: list[tuple] = [("", None, str(one)) for one in media]
    if good:
        queries = [questions[places[at]].query for at in good]
        for at, (text, record) in zip(good, answerer.answer(queries, [media[at] for at in good]), strict=True):
            entry = record.to_dict() | answerer.shown(media[at], questions[places[at]].files) if record else None
            out[at] = text, entry, None
    return out


def _give_up_if_hopeless(report: Report, count: int) -> None:
    if len(report.errors) == count >= HOPELESS:
        reason = report.errors[min(report.errors)]
        raise ValueError(f"not one of the first {count} questions could be asked ({reason})")


def _read_ahead(
    plan: list[list[int]], questions: Sequence[Question], answerer: Answerer, workers: int
) -> Iterator[tuple[list[int], list[Any]]]:
    """Places and processed media, or ImageError, of each batch; the next batches are read meanwhile."""

    def read(place: int) -> Any:
        try:
            return answerer.process(questions[place].load())
        except ImageError as error:
            return error

    ahead: deque[tuple[list[int], list[Future]]] = deque()
    rest = iter(plan)
    pool = ThreadPoolExecutor(workers)
    try:
        while True:
            while (not ahead or sum(len(places) for places, _ in ahead) < 2 * workers) and (places := next(rest, None)):
                ahead.append((places, [pool.submit(read, place) for place in places]))
            if not ahead:
                return
            places, futures = ahead.popleft()
            yield places, [future.result() for future in futures]
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


# ---------------------------------------------------------------------------------------------------------------
# Command lines

# Options that do not change an answer, or stand in the settings under another name.
_FREE = """question_file image_folder answers_file log_retained_patches save_pictures resume batch_size workers device
    model_path gt_file_question gt_file_answers video_dir output_dir output_name cache_dir model_max_length"""


def add_options(parser: argparse.ArgumentParser, length: int, temperature: float = 0.2) -> None:
    """The flags of the original's commands, and ours; ``length`` is the default of --max_new_tokens."""
    parser.add_argument(
        "--model-path", "--model_path", help="folder or hub name (default: the checkpoint that ships with the package)"
    )
    parser.add_argument("--model-base", "--model_base")
    parser.add_argument("--conv-mode", "--conv_mode", help="conversation template (default: the checkpoint's own)")
    parser.add_argument("--num-chunks", "--num_chunks", type=positive, default=1)
    parser.add_argument("--chunk-idx", "--chunk_idx", type=int, default=0)
    parser.add_argument(
        "--temperature", type=bounded(0, None), default=temperature, help=f"0: greedy ({temperature:g})"
    )
    parser.add_argument("--top_p", "--top-p", type=bounded(0, 1))
    parser.add_argument("--num_beams", "--num-beams", type=positive, default=1)
    parser.add_argument("--max_new_tokens", "--max-new-tokens", type=positive, default=length, help=f"({length})")
    parser.add_argument("--batch-size", type=positive, default=1, help="questions asked together, if greedy (1)")
    parser.add_argument("--workers", type=positive, default=4, help="threads that read pictures ahead (4)")
    parser.add_argument("--seed", type=int, default=0, help="of sampling; each question has its own from this one (0)")
    parser.add_argument("--device", default="cuda", help="cuda, mps or cpu (default: the best there is)")
    parser.add_argument("--load-8bit", action="store_true")
    parser.add_argument("--load-4bit", action="store_true")
    parser.add_argument("--use-flash-attn", action="store_true")
    parser.add_argument(
        "--resume", action=argparse.BooleanOptionalAction, default=True, help="continue an answers file (yes)"
    )
    parser.add_argument("--log-retained-patches", metavar="FILE", help="JSON lines: what was kept for each answer")
    add_mob_flags(parser)


def make_parser(name: str, doc: str, length: int, question_file: str = "tables/question.jsonl"):
    """The parser of a command about pictures."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {name}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--question-file", default=question_file, help=f"({question_file})")
    parser.add_argument("--image-folder", default="", help="where the questions' pictures are (here)")
    parser.add_argument("--answers-file", default="answer.jsonl", help="(answer.jsonl)")
    parser.add_argument(
        "--save-pictures", metavar="DIR", help="write each picture there, for python -m mob.audit --images DIR"
    )
    add_options(parser, length)
    return parser


def settings(args: argparse.Namespace, answerer: Answerer, files: Sequence[str], count: int) -> dict[str, Any]:
    """Everything that decides the answers. An option is in it unless it is known to change nothing."""
    out: dict[str, Any] = {"questions": {Path(file).name: _digest(file) for file in files}, "number": count}
    free = {*_FREE.split()}
    out |= {k: v for k, v in sorted(vars(args).items()) if k not in free and not k.startswith("mob_")}
    return out | answerer.settings


def _digest(file: str) -> str:
    digest = hashlib.sha256()
    with Path(file).open("rb") as source:
        while block := source.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def run(
    args: argparse.Namespace, questions: Sequence[Question], load: Callable[[], Answerer], files: Sequence[str]
) -> Report:
    """Answer one chunk of ``questions``, read from ``files``, with the model that ``load`` gives."""
    numbers = chunk(len(questions), args.num_chunks, args.chunk_idx)
    part = questions[numbers.start : numbers.stop]
    answerer = load()
    decided = settings(args, answerer, files, len(questions))
    keys = [question.key for question in part]
    with opened(args.answers_file, keys, decided, records=args.log_retained_patches, resume=args.resume) as journal:
        try:
            return answer_all(part, numbers, journal, answerer, args)
        except KeyboardInterrupt:
            say(
                f"stopped: {len(journal.done)} of {len(part)} answers are in {args.answers_file}; run it again to go on"
            )
            raise


def finish(args: argparse.Namespace, work: Callable[[], Report]) -> int:
    """Run a command's work; its exit code."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        report = work()
    except ValueError as error:
        say(f"error: {error}")
        return 2
    except torch.OutOfMemoryError:
        say("error: out of memory; what is answered is kept: run it again with a smaller --batch-size or --mob-K")
        return 2
    except KeyboardInterrupt:
        return 130
    say(f"{report.answers} answers in {args.answers_file}")
    if not report.errors:
        return 0
    first = report.errors[min(report.errors)]
    say(f"error: {len(report.errors)} of them are empty ({first}); run it again to ask these again")
    return 1
