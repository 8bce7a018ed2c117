"""Ask a LLaVA about a picture: ``python -m llava.eval.run_llava --query "what shape is red?" --image-file x.png``.

Without ``--model-path`` the tiny checkpoint that ships with this package answers. ``--mob-K 64`` keeps 64 visual
tokens, ``--overlay out.png`` shows which, ``--mob-compare`` answers with and without pruning. The answer goes to
standard output, everything else to standard error. Exit code 2 and one line: a picture, model or option that is wrong.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import TextStreamer
from transformers.utils import logging as transformers_logging

from llava.eval.prompts import build_prompt, encode
from llava.mm_utils import get_model_name_from_path, load_images, process_images, seen_box
from llava.model.builder import best_device, load_pretrained_model
from mob import MoBConfig, RetainedPatches
from mob.audit.writing import digest_of, layers_of, shown
from mob.cost import cost
from mob.flags import add_mob_flags, resolve
from mob.picture import overlay

EMBEDDED = Path(__file__).parent.parent / "scenes" / "checkpoint"
_LENGTH = 512


def image_parser(args: Any) -> list[str]:
    """``--image-file`` holds one source, or several with ``--sep`` between. A data: URL is always one.

    Raises:
        ValueError: it holds none, as an unset variable in a script would.
    """
    if args.image_file[:5].lower() == "data:":
        return [args.image_file]
    sources = [part for part in args.image_file.split(args.sep) if part]
    if not sources:
        raise ValueError(f"--image-file {args.image_file!r} names no picture: give a path or a URL")
    return sources


@dataclass(frozen=True)
class Answer:
    """What one question gave: text, its new tokens, the time from ids to text, and what was kept."""

    text: str
    tokens: int
    milliseconds: float
    prompt_tokens: int
    record: RetainedPatches | None


class Asker:
    """A loaded model that answers questions about pictures."""

    def __init__(self, args: Any):
        path = str(getattr(args, "model_path", None) or EMBEDDED)
        self.name = get_model_name_from_path(path)
        self.args = args
        device = best_device(getattr(args, "device", None) or "cuda")
        self.tokenizer, self.model, self.image_processor, _ = load_pretrained_model(
            path,
            getattr(args, "model_base", None),
            self.name,
            load_8bit=getattr(args, "load_8bit", False),
            load_4bit=getattr(args, "load_4bit", False),
            device=device,
            use_flash_attn=getattr(args, "use_flash_attn", False),
        )
        default_on = path == str(EMBEDDED) or re.search(r"(^|[-_.])mob($|[-_.])", self.name.lower()) is not None
        self.mob = resolve(args, self.model.config.MoB_config, default_on)
        self.model.pruning.record = True

    def ask(self, query: str, images: list[Image.Image], mob: dict[str, Any], stream: bool = False) -> Answer:
        """Answer one question with the given ``MoB_config``."""
        model, tokenizer, args = self.model, self.tokenizer, self.args
        model.config.MoB_config = mob
        conv_mode = getattr(args, "conv_mode", None)
        prompt = build_prompt(query, len(images), tokenizer, model.config, self.name, conv_mode)
        ids = encode(prompt, tokenizer).to(model.device)
        pixels = process_images(images, self.image_processor, model.config) if images else None
        length = args.max_new_tokens or model.generation_config.max_new_tokens or _LENGTH
        options: dict[str, Any] = {"max_new_tokens": length, "num_beams": args.num_beams}
        options["do_sample"] = args.temperature > 0
        if args.temperature > 0:
            options |= {"temperature": args.temperature}
            options |= {"top_p": args.top_p} if args.top_p is not None else {}
        if stream:
            options["streamer"] = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        model.pruning.clear()
        started = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(ids, images=pixels, image_sizes=[image.size for image in images], **options)
        out = out.cpu()  # waits for the device
        milliseconds = (time.perf_counter() - started) * 1000
        text = tokenizer.decode(out[0], skip_special_tokens=True).strip()
        records = model.pruning.records
        visual = records[0].N if records else 0
        length = int(ids.shape[1]) + (visual - len(images) if visual else 0)
        return Answer(text, out.shape[1], milliseconds, length, records[0] if records else None)

    def seen(self, image: Image.Image) -> tuple[float, float, float, float]:
        """The region of a picture that the model saw, in its pixels."""
        return seen_box(image.size, self.image_processor, self.model.config)


def eval_model(args: Any) -> Answer:
    """Answer ``args.query`` about ``args.image_file``; prints the answer. ``args``: any object with these attributes.

    Raises:
        ValueError: a picture, model or option that is wrong; the message is one line.
    """
    images = load_images(image_parser(args))
    asker = Asker(args)
    if getattr(args, "mob_compare", False):
        answer = compare(asker, args.query, images)
    else:
        stream = args.num_beams == 1
        answer = asker.ask(args.query, images, asker.mob, stream=stream)
        if not stream:
            print(answer.text)
        say(describe(asker, answer))
    save(asker, answer, images, args)
    return answer


def compare(asker: Asker, query: str, images: list[Image.Image]) -> Answer:
    """Answer without and with pruning, after a warm-up of each; prints both. Returns the pruned answer."""
    if not MoBConfig.from_dict(asker.mob).enabled:
        raise ValueError("--mob-compare needs something to compare: give --mob-K, or leave out --mob-off")
    rows = {}
    for name, mob in (("all tokens", {}), ("pruned", asker.mob)):
        asker.ask(query, images, mob)
        rows[name] = asker.ask(query, images, mob)
    width = max(len(answer.text) for answer in rows.values())
    for name, answer in rows.items():
        kept = answer.record.K if answer.record else rows["pruned"].record.N
        print(f"{name:<10}  {answer.text:<{width}}  {kept:>5} visual tokens  {answer.milliseconds:7.1f} ms")
    say(describe(asker, rows["pruned"]))
    return rows["pruned"]


def describe(asker: Asker, answer: Answer) -> str:
    """One line on what was kept and what that costs."""
    record = answer.record
    if record is None:
        spent = f"{answer.tokens} new tokens in {answer.milliseconds:.0f} ms"
        return f"MoB is off (--mob-K 64 would keep 64 visual tokens); {spent}"
    price = cost(asker.model.config, record.N, record.K, layer=record.layer, text=answer.prompt_tokens - record.N)
    return (
        f"kept {record.K} of {record.N} visual tokens ({sum(record.prompt_center)} prompt centres) from layer "
        f"{record.layer} on: on average {price.mean_tokens:.0f} a layer, {price.macs_share:.0%} of the prefill MACs, "
        f"{price.kv_share:.0%} of the KV cache ({price.kv_bytes / 1024:.0f} KiB); {answer.tokens} new tokens in "
        f"{answer.milliseconds:.0f} ms"
    )


def save(asker: Asker, answer: Answer, images: list[Image.Image], args: Any) -> None:
    """Write --overlay and --save-record."""
    named = zip(image_parser(args), images, strict=True)
    save_record(asker, answer, args, [described(image, name, asker.seen(image)) for name, image in named])
    if picture := getattr(args, "overlay", None):
        for number, image in enumerate(images):
            target = Path(picture) if number == 0 else Path(picture).with_stem(f"{Path(picture).stem}-{number}")
            drawn = overlay(image, answer.record, number=number, box=asker.seen(image))
            _write(target, "--overlay", drawn.save)


def described(image: Image.Image, name: str, box: tuple[float, float, float, float]) -> dict[str, Any]:
    """What a record says of a picture."""
    return shown(image.size, name=name, digest=digest_of(image), box=box)


def save_record(asker: Any, answer: Answer, args: Any, pictures: list[dict[str, Any]]) -> None:
    """Write --save-record; ``pictures``: what was shown, as ``mob.audit`` reads it.

    Raises:
        ValueError: this or --overlay is wanted and nothing was dropped, or the file cannot be written.
    """
    target = getattr(args, "save_record", None)
    if (target or getattr(args, "overlay", None)) and answer.record is None:
        raise ValueError("--overlay and --save-record show what was kept, but nothing was dropped: give --mob-K")
    if not target:
        return
    values = {"query": args.query, "answer": answer.text} | answer.record.to_dict()
    values |= {"layers": layers_of(asker.model.config), "pictures": pictures}
    _write(target, "--save-record", lambda file: file.write_text(json.dumps(values) + "\n"))


def _write(target: str | Path, flag: str, write: Callable[[Path], Any]) -> None:
    try:
        write(Path(target))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot write {flag} {target}: {error}") from error
    say(f"{flag.lstrip('-')}: {target}")


def say(text: str) -> None:
    print(text, file=sys.stderr)


def positive(text: str) -> int:
    """An integer of at least 1, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}: must be at least 1")
    return value


def bounded(low: float, high: float | None) -> Callable[[str], float]:
    """A number within bounds, for argparse."""

    def number(text: str) -> float:
        value = float(text)
        if value < low or (high is not None and value > high):
            raise argparse.ArgumentTypeError(f"{value}: must be {low} or more" + (f", {high} at most" if high else ""))
        return value

    return number


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m llava.eval.run_llava", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model-path", help="folder or hub name (default: the checkpoint that ships with the package)")
    parser.add_argument("--model-base")
    parser.add_argument("--image-file", required=True, help="path or URL; several with --sep between")
    add_asking_flags(parser)
    return parser.parse_args(argv)


def add_asking_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of a command that asks one question, whatever it is about."""
    parser.add_argument("--query", required=True)
    parser.add_argument("--conv-mode", help="conversation template (default: the checkpoint's own)")
    parser.add_argument("--sep", default=",")
    parser.add_argument("--temperature", type=bounded(0, None), default=0.2, help="0: greedy")
    parser.add_argument("--top_p", "--top-p", type=bounded(0, 1))
    parser.add_argument("--num_beams", "--num-beams", type=positive, default=1)
    parser.add_argument(
        "--max_new_tokens", "--max-new-tokens", type=positive, help=f"default: the checkpoint's, or {_LENGTH}"
    )
    parser.add_argument("--device", default="cuda", help="cuda, mps or cpu (default: the best there is)")
    parser.add_argument("--load-8bit", action="store_true")
    parser.add_argument("--load-4bit", action="store_true")
    parser.add_argument("--use-flash-attn", action="store_true")
    add_mob_flags(parser)
    parser.add_argument("--mob-compare", action="store_true", help="answer with and without pruning, and time both")
    parser.add_argument("--overlay", help="write a picture of the kept patches here")
    parser.add_argument("--save-record", help="write what was kept as JSON here")


def main(argv: list[str] | None = None) -> int:
    return exit_code(eval_model, parse(argv))


def exit_code(ask: Callable[[Any], Any], args: argparse.Namespace) -> int:
    """Run a command quietly: 0, or 2 and one line for whatever was wrong with its arguments."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        ask(args)
    except ValueError as error:
        say(f"error: {error}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
