"""What commands that ask scenes have in common: which split, which checkpoint, how many questions."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import LlavaForConditionalGeneration

from llava.scenes.checkpoint import PATHS, split_of
from llava.scenes.splits import SPLITS


def add_questions(parser: argparse.ArgumentParser, n: int) -> None:
    """``--split``, ``--model-path`` and ``--n``; ``n`` questions of each kind where the command names no number."""
    parser.add_argument("--split", choices=tuple(SPLITS), default="easy", help="scenes to ask about (easy)")
    parser.add_argument("--model-path", type=Path, help="a checkpoint of scenes (that of the split)")
    parser.add_argument("--n", type=int, default=n, help=f"questions of each of the nine kinds ({n})")


def load_model(parser: argparse.ArgumentParser, args: argparse.Namespace) -> LlavaForConditionalGeneration:
    """The model that ``args`` name, in float32 on the CPU; ``args.model_path`` then says which that is.

    A folder that is no checkpoint of scenes, and fewer than one question, end the command with what is wrong.
    """
    if args.n < 1:
        parser.error("--n must be at least 1")
    args.model_path = args.model_path or PATHS[args.split]
    try:
        model = LlavaForConditionalGeneration.from_pretrained(args.model_path, dtype=torch.float32).eval()
        split_of(model)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    return model
