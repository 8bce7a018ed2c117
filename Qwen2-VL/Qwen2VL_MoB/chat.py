"""Ask a Qwen-VL: ``python -m Qwen2VL_MoB.chat --model-path Qwen/Qwen2-VL-7B-Instruct --query "..." --image-file x.jpg``

``--mob-K 64`` keeps 64 visual tokens, ``--mob-K 0.25`` a quarter of them. The answer goes to standard output,
everything else to standard error. Exit code 2 and one line: a picture, model or option that is wrong.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoTokenizer
from transformers.utils import is_flash_attn_2_available
from transformers.utils import logging as transformers_logging

from mob.audit.writing import digest_of, layers_of, shown
from mob.flags import add_mob_flags, resolve
from mob.video import probe
from Qwen2VL_MoB.dialogue import LENGTH
from Qwen2VL_MoB.modeling_qwen2_vl_self import MoB
from Qwen2VL_MoB.pictures import to_picture

ATTENTION = ("sdpa", "eager", "flash_attention_2")
DTYPES = ("auto", "float32", "float16", "bfloat16")


def load(args: argparse.Namespace) -> tuple[Any, Any]:
    """(tokenizer, model) that ``args`` name, with the ``MoB_config`` that they say.

    Raises:
        ValueError: no such model, device or option, or damaged files; one line.
    """
    path, device = args.model_path, _device(args.device)
    folder = Path(path).expanduser()
    if args.attn == "flash_attention_2" and not is_flash_attn_2_available():
        raise ValueError("--attn flash_attention_2 needs flash-attn: pip install flash-attn, or --attn sdpa")
    if path.startswith((".", "/", "~")) and not folder.is_dir():
        raise ValueError(f"--model-path {path} is not a folder: give the folder of a model, or its name on the hub")
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ValueError(f"--model-path {path} has no config.json: give the folder of a model, or its name on the hub")
    path = str(folder)
    options = {"dtype": args.dtype, "attn_implementation": args.attn, "device_map": {"": device}}
    try:
        model, info = MoB.from_pretrained(path, output_loading_info=True, **options)
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"the model {path} cannot be loaded ({_line(error)}): check its name and files") from error
    if lost := sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]])):
        raise ValueError(f"the weights in {path} lack {len(lost)}, such as {lost[0]}: download them again")
    named = re.search(r"(^|[-_.])mob($|[-_.])", Path(path).name.lower()) is not None
    model.config.MoB_config = resolve(args, model.config.MoB_config, default_on=named)
    model.pruning.record = True
    return tokenizer, model.eval()


def ask(args: argparse.Namespace) -> str:
    """Answer ``args.query``; prints the answer as it comes, and to standard error what was kept."""
    pictures = [to_picture(file) for file in args.image_file or ()]  # before the model, which takes longer
    clips = {file: probe(file) for file in args.video_file or ()}
    tokenizer, model = load(args)
    frames = {"fps": args.fps, "max_frames": args.max_frames}
    frames = {key: value for key, value in frames.items() if value is not None}
    videos = [{"video": file, **frames} for file in args.video_file or ()]
    started = time.perf_counter()
    answer = model.chat(
        tokenizer,
        args.query,
        image=pictures or None,
        video=videos or None,
        system=args.system,
        stream=True,
        max_new_tokens=args.max_new_tokens,
        min_pixels=args.min_pixels,
        max_pixels=args.max_pixels,
        **_sampling(args),
    )
    say(_describe(model, time.perf_counter() - started))
    if args.save_record:
        named = zip(pictures, args.image_file or (), strict=True)
        seen = [shown(one.size, name=name, digest=digest_of(one), box=(0, 0, *one.size)) for one, name in named]
        sizes = {file: (info.width, info.height) for file, info in clips.items()}
        seen += [shown(sizes[file], video=file, box=(0, 0, *sizes[file])) for file in args.video_file or ()]
        _save(args, model, answer, seen)
    return answer


def _sampling(args: argparse.Namespace) -> dict[str, Any]:
    """Keywords of ``generate``."""
    options = {} if args.top_p is None else {"top_p": args.top_p}
    if args.temperature is None:
        return options
    if not args.temperature:  # the checkpoint's own settings of sampling would draw warnings
        return dict.fromkeys(("temperature", "top_p", "top_k")) | {"do_sample": False}
    return options | {"do_sample": True, "temperature": args.temperature}


def _describe(model: Any, seconds: float) -> str:
    records = model.pruning.records
    if not records or not records[0].N:
        return f"nothing was pruned (--mob-K 64 would keep 64 visual tokens); {seconds * 1000:.0f} ms"
    one = records[0]
    return (
        f"kept {one.K} of {one.N} visual tokens ({sum(one.prompt_center)} prompt centres) from layer {one.layer} on; "
        f"{seconds * 1000:.0f} ms"
    )


def _save(args: argparse.Namespace, model: Any, answer: str, pictures: list[dict[str, Any]]) -> None:
    records = model.pruning.records
    if not records:
        raise ValueError("--save-record shows what was kept, but nothing was dropped: give --mob-K")
    values = {"query": args.query, "answer": answer} | records[0].to_dict()
    values |= {"layers": layers_of(model.config), "pictures": pictures}
    try:
        Path(args.save_record).write_text(json.dumps(values) + "\n")
    except OSError as error:
        raise ValueError(f"cannot write --save-record {args.save_record}: {error.strerror}") from error


def _device(wanted: str | None) -> str:
    """The device asked for; by default the best there is. ValueError where it is not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted is None:
        return next(kind for kind, found in there.items() if found)
    if not there.get(wanted.split(":")[0], False):
        found = ", ".join(kind for kind, found in there.items() if found)
        raise ValueError(f"--device {wanted} is not there: use one of {found}")
    return wanted


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def say(text: str) -> None:
    print(text, file=sys.stderr)


def _at_least(kind: type, low: float, high: float | None = None) -> Any:
    def number(text: str) -> Any:
        value = kind(text)
        if not value >= low or (high is not None and value > high):
            raise argparse.ArgumentTypeError(f"{value}: must be {low} or more" + (f", {high} at most" if high else ""))
        return value

    number.__name__ = kind.__name__
    return number


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m Qwen2VL_MoB.chat", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model-path", required=True, help="folder or hub name")
    parser.add_argument("--query", required=True, help="<image> and <video> in it say where pictures and videos go")
    parser.add_argument("--image-file", nargs="+", action="extend", help="paths or URLs")
    parser.add_argument("--video-file", nargs="+", action="extend", help="paths")
    parser.add_argument("--fps", type=_at_least(float, 0.01), help="frames to read of a second of video (2)")
    parser.add_argument("--max-frames", type=_at_least(int, 2), help="most frames of a video (768)")
    parser.add_argument("--min-pixels", type=_at_least(int, 1), help="of each picture and frame")
    parser.add_argument("--max-pixels", type=_at_least(int, 1))
    parser.add_argument("--system", default="You are a helpful assistant.")
    parser.add_argument("--max-new-tokens", type=_at_least(int, 1), help=f"default: the checkpoint's, or {LENGTH}")
    parser.add_argument("--temperature", type=_at_least(float, 0), help="0: greedy; default: the checkpoint's")
    parser.add_argument("--top-p", type=_at_least(float, 0, 1))
    parser.add_argument("--device", help="cuda, mps or cpu (default: the best there is)")
    parser.add_argument("--dtype", default="auto", choices=DTYPES)
    parser.add_argument("--attn", default="sdpa", choices=ATTENTION)
    add_mob_flags(parser)
    parser.add_argument("--save-record", help="write what was kept as JSON here")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        ask(args)
    except ValueError as error:
        say(f"error: {_line(error)}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
