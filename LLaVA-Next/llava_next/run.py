"""Ask a LLaVA about pictures or a video: ``python -m llava_next.run --model-path P --query Q --video-file clip.mp4``.

Takes LLaVA-OneVision, LLaVA-NeXT-Video and Video-LLaVA, and for pictures also LLaVA-1.5 and 1.6, which
``llava.eval.run_llava`` answers; without ``--model-path`` its embedded checkpoint does. ``--mob-K 64`` keeps 64 visual
tokens. The answer goes to standard output, everything else to standard error. Exit code 2 and one line: a picture,
video, model or option that is wrong.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import TextStreamer

from llava.eval import run_llava
from llava.eval.run_llava import (
    Answer,
    add_asking_flags,
    compare,
    describe,
    described,
    exit_code,
    image_parser,
    positive,
    say,
)
from llava.model.formats import local_folder, read_config
from llava_next.mm_utils import FRAMES, get_model_name_from_path, load_images, load_video, process_video
from llava_next.model.builder import LLAVA, changed_config, family, load_pretrained_model
from llava_next.processing import prepare, seen, seen_of_frames
from llava_next.prompts import build_prompt
from mob.audit.writing import shown
from mob.flags import resolve
from mob.picture import Box, overlay

EXAMPLE = "llava-hf/llava-onevision-qwen2-0.5b-ov-hf"
_LENGTH = 512


@dataclass(frozen=True)
class Media:
    """What a question is about: PIL pictures, and videos as uint8 frames (F, height, width, 3)."""

    images: list[Image.Image]
    videos: list[np.ndarray]


class Asker:
    """A loaded model that answers questions about pictures and videos."""

    def __init__(self, args: Any) -> None:
        self.args = args
        self.name = get_model_name_from_path(args.model_path)
        self.tokenizer, self.model, self.image_processor, self.context = load_pretrained_model(
            args.model_path,
            None,
            self.name,
            load_8bit=args.load_8bit,
            load_4bit=args.load_4bit,
            attn_implementation="flash_attention_2" if args.use_flash_attn else None,
            device=args.device,
            overwrite_config=args.overwrite_config,
        )
        named = re.search(r"(^|[-_.])mob($|[-_.])", self.name.lower()) is not None
        self.mob = resolve(args, self.model.config.MoB_config, default_on=named)
        self.model.pruning.record = True

    def ask(self, query: str, media: Media, mob: dict[str, Any], stream: bool = False) -> Answer:
        """Answer one question with the given ``MoB_config``."""
        model, tokenizer = self.model, self.tokenizer
        model.config.MoB_config = mob
        inputs = self.inputs(query, media)
        length = int(inputs["input_ids"].shape[1])
        if length > self.context:
            say(f"note: the prompt has {length} tokens, this model was made for {self.context}: give fewer --frames")
        options = self._options()
        if stream:
            options["streamer"] = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        model.pruning.clear()
        started = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(**inputs, **options)
        new = out[0, length:].cpu()  # waits for the device
        milliseconds = (time.perf_counter() - started) * 1000
        text = tokenizer.decode(new, skip_special_tokens=True).strip()
        record = next((one for one in model.pruning.records if one.N), None)
        return Answer(text, len(new), milliseconds, length, record)

    def inputs(self, query: str, media: Media) -> dict[str, Tensor]:
        """What ``generate`` takes, on the model's device."""
        model = self.model
        counts = len(media.images), len(media.videos)
        prompt = build_prompt(query, *counts, self.tokenizer, model.config, self.args.conv_mode)
        videos = [process_video(frames, self.image_processor, None) for frames in media.videos]
        given = prepare(prompt, self.tokenizer, self.image_processor, model.config, media.images, videos)
        return {k: v.to(model.device, model.dtype if v.is_floating_point() else None) for k, v in given.items()}

    def seen(self, image: Image.Image, pictures: int = 1) -> Box:
        """The region of a picture that the model saw, in its pixels; beyond the edges is padding."""
        return seen(image.size, pictures, self.image_processor, self.model.config)

    def seen_of_frames(self, frame: Image.Image) -> Box:
        """The same for the frames of a video."""
        return seen_of_frames(frame.size, self.image_processor)

    def _options(self) -> dict[str, Any]:
        args = self.args
        length = args.max_new_tokens or self.model.generation_config.max_new_tokens or _LENGTH
        options: dict[str, Any] = {"max_new_tokens": length, "num_beams": args.num_beams}
        options["do_sample"] = args.temperature > 0
        if args.temperature > 0:
            options |= {"temperature": args.temperature, "top_p": args.top_p}
        return {key: value for key, value in options.items() if value is not None}


def eval_model(args: Any) -> Answer:
    """Answer ``args.query`` about ``args.image_file`` or ``args.video_file``; prints the answer.

    Raises:
        ValueError: a picture, video, model or option that is wrong; the message is one line.
    """
    if family_of(args) == LLAVA:
        _check_llava(args)
        return run_llava.eval_model(args)
    if args.model_base:
        raise ValueError(f"--model-base {args.model_base}: only LLaVA-1.5 and 1.6 have adapters here")
    media = read_media(args)
    asker = Asker(args)
    if args.mob_compare:
        if not media.images and not media.videos:
            raise ValueError("--mob-compare needs something to prune: give --image-file or --video-file")
        answer = compare(asker, args.query, media)
    else:
        stream = args.num_beams == 1
        answer = asker.ask(args.query, media, asker.mob, stream=stream)
        if not stream:
            print(answer.text)
        say(describe(asker, answer))
    save(asker, answer, media, args)
    return answer


def family_of(args: Any) -> str:
    """Which family the command line asks; without a model it is the embedded LLaVA."""
    if args.model_path is None:
        return LLAVA
    return family(changed_config(read_config(local_folder(args.model_path)), overwrite=args.overwrite_config))


def add_config_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--overwrite-config", type=_object, help="keys of config.json that are to be others, as JSON")


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no JSON object: give one such as '{{\"mm_spatial_pool_stride\": 2}}'"
        )
    return value


def read_media(args: Any) -> Media:
    """The pictures or the video of the command line."""
    if args.image_file is not None and args.video_file is not None:
        raise ValueError("--image-file and --video-file: give one of them")
    images = load_images(image_parser(args)) if args.image_file is not None else []
    videos = [load_video(args.video_file, args.frames)] if args.video_file is not None else []
    return Media(images, videos)


def save(asker: Asker, answer: Answer, media: Media, args: Any) -> None:
    """Write --save-record and --overlay: a sheet of the views of each picture, or of the video's frames."""
    boxes = [asker.seen(one, len(media.images)) for one in media.images]
    names = image_parser(args) if media.images else []
    pictures = [described(*both) for both in zip(media.images, names, boxes, strict=True)]
    views: list[tuple[Any, Box]] = list(zip(media.images, boxes, strict=True))
    for frames in media.videos:
        sheet = [Image.fromarray(frame) for frame in frames]
        views.append((sheet, asker.seen_of_frames(sheet[0])))
        pictures.append(shown(sheet[0].size, video=str(args.video_file), box=views[-1][1]))
    run_llava.save_record(asker, answer, args, pictures)
    if not args.overlay:
        return
    for number, (picture, box) in enumerate(views):
        target = (
            Path(args.overlay) if number == 0 else Path(args.overlay).with_stem(f"{Path(args.overlay).stem}-{number}")
        )
        drawn = overlay(picture, answer.record, number=number, box=box)
        try:
            drawn.save(target)
        except (OSError, ValueError) as error:
            raise ValueError(f"cannot write --overlay {target}: {error}") from error
        say(f"overlay: {target}")


def _check_llava(args: Any) -> None:
    if args.video_file is not None:
        which = args.model_path or "the embedded checkpoint"
        raise ValueError(
            f"{which} is a LLaVA for pictures: for videos give a model such as --model-path {EXAMPLE} (the config.json "
            "of an original LLaVA-NeXT-Video must name mm_spatial_pool_mode and mm_spatial_pool_stride; where not, "
            """--overwrite-config '{"mm_spatial_pool_mode": "average", "mm_spatial_pool_stride": 2}')"""
        )
    if args.overwrite_config:
        raise ValueError("--overwrite-config: a LLaVA-1.5 or 1.6 is asked with its config.json as it is, change that")
    if args.image_file is None:
        raise ValueError(
            f"give --image-file; or, to ask about a video or text alone, a model such as --model-path {EXAMPLE}"
        )


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m llava_next.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model-path", help=f"folder or hub name, such as {EXAMPLE} (default: the embedded LLaVA)")
    parser.add_argument("--model-base", help="of an adapter of LLaVA-1.5 or 1.6")
    add_config_flag(parser)
    parser.add_argument("--image-file", help="path or URL; several with --sep between")
    parser.add_argument("--video-file", help="path")
    parser.add_argument("--frames", type=positive, default=FRAMES, help=f"frames read of the video ({FRAMES})")
    add_asking_flags(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    return exit_code(eval_model, parse(argv))


if __name__ == "__main__":
    sys.exit(main())
